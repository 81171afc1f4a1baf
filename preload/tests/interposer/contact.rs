//! cuInit: finding the assigner, the driver, and what to do without either.

use crate::assigner::{Assigner, UUID, bound, start, start_in, welcome};
use crate::setup::{Lab, interposer, wait_until};
use acb_wire::frame::encode;
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{AssignerMessage, Refused, RefusedCode, Wanted};
use std::io::Write;

#[test]
fn without_a_socket_everything_passes_through() {
    let lab = Lab::new().with("ACB_SOCKET", "");
    lab.start("init").end().succeeded().prints("cuInit=0");
    assert_eq!(lab.driver_calls(), ["cuInit 0 0"]);
}

#[test]
fn a_process_without_cuda_does_not_even_look_for_the_assigner() {
    let lab = Lab::new().with("ACB_DRIVER", "/nonexistent");
    let ended = lab.start("no-cuda").end().succeeded();
    assert_eq!(ended.stderr(), "", "{}", ended.text());
}

#[test]
fn the_driver_sees_the_gpus_of_the_assigner() {
    let lab = Lab::new().with("ACB_GPUS", "1").with("ACB_STEP", "0").with("ACB_RANK", "3");
    let assigner = Assigner::listen(&lab.socket());
    let client = lab.start("init");
    let mut peer = assigner.accept();
    let hello = peer.hello();
    assert_eq!(
        (hello.protocol, hello.pid, hello.gpus, hello.step.as_str(), hello.rank),
        (1, client.pid(), 1, "0", 3)
    );
    assert!(hello.start_time > 0 && hello.held.is_none());
    assert!(hello.program.starts_with("interposer"), "{}", hello.program);
    peer.say(Say::Welcome(welcome()));
    assert_eq!(peer.hear(), Hear::Bind(Default::default()));
    peer.say(bound());
    client.end().succeeded().prints("cuInit=0");
    assert_eq!(lab.driver_calls(), [format!("cuInit 0 {UUID}")]);
    assert_eq!(peer.try_hear(), None, "the end of the process is the end of the connection");
}

/// Programs take the entries for numbers, also those that they start; the driver is shown UUIDs.
#[test]
fn the_program_and_its_children_see_ordinals() {
    for (value, after) in [("0", "0"), ("", "0"), ("3", "3"), (" 0 ", " 0 ")] {
        let lab = Lab::new().with("CUDA_VISIBLE_DEVICES", value);
        let assigner = Assigner::listen(&lab.socket());
        let client = lab.start("visible");
        let mut peer = assigner.accept();
        let hello = peer.hello();
        assert_eq!((hello.gpus, &hello.eligible[..]), (1, &[][..]));
        peer.say(Say::Welcome(welcome()));
        assert_eq!(peer.hear(), Hear::Bind(Default::default()));
        peer.say(bound());
        let ended = client.end().succeeded().prints(&format!("after=[{after}]"));
        assert!(ended.stdout().contains(&format!("child=[{after}]")), "{}", ended.text());
        assert_eq!(lab.driver_calls(), [format!("cuInit 0 {UUID}")]);
    }
}

/// What a program makes of the list before cuInit is relative to what it has been given.
#[test]
fn a_narrower_choice_is_asked_for() {
    let uuids = "GPU-aa11,GPU-bb22";
    for (choice, wanted) in [
        ("1", &["GPU-bb22"][..]),
        ("1,0", &["GPU-bb22", "GPU-aa11"]),
        ("GPU-bb", &["GPU-bb22"]),
        ("GPU-cc33", &["GPU-cc33"]),
        ("0,1", &[]),
    ] {
        let lab = Lab::new().with("ACB_GPUS", "2").with("CUDA_VISIBLE_DEVICES", "0,1");
        let lab = lab.with("ACB_UUIDS", uuids);
        let assigner = Assigner::listen(&lab.socket());
        let client = lab.start(&format!("visible {choice}"));
        let mut peer = assigner.accept();
        let hello = peer.hello();
        assert_eq!(hello.eligible, wanted, "{choice}");
        assert_eq!(hello.gpus as usize, if wanted.is_empty() { 2 } else { wanted.len() });
        peer.say(Say::Welcome(welcome()));
        assert_eq!(peer.hear(), Hear::Bind(Default::default()));
        peer.say(bound());
        let ended = client.end().succeeded().prints(&format!("after=[{choice}]"));
        assert!(ended.stdout().contains(&format!("child=[{choice}]")), "{}", ended.text());
    }
}

#[test]
fn without_an_assigner_ordinals_mean_the_jobs_gpus() {
    let lab = Lab::new().with("ACB_GRACE_MS", "50").with("ACB_GPUS", "2");
    let lab = lab.with("ACB_UUIDS", "GPU-aa11,GPU-bb22").with("CUDA_VISIBLE_DEVICES", "1");
    lab.start("visible").end().succeeded().prints("after=[1]").says("goes on without scheduling");
    assert_eq!(lab.driver_calls(), ["cuInit 0 GPU-bb22"]);
}

#[test]
fn a_program_that_hides_all_gpus_is_left_alone() {
    let lab = Lab::new().with("CUDA_VISIBLE_DEVICES", "-1");
    lab.start("init").end().succeeded();
    assert_eq!(lab.driver_calls(), ["cuInit 0 -1"]);
}

#[test]
fn many_threads_make_one_client() {
    let (_lab, _assigner, client, mut peer) = start("init-often");
    let ended = client.end().succeeded().prints("again=0");
    assert_eq!(ended.stdout().matches("cuInit=0").count(), 8);
    assert_eq!(peer.try_hear(), None);
}

#[test]
fn a_driver_that_fails_gives_the_client_back() {
    let (_lab, _assigner, client, mut peer) =
        start_in(Lab::new().with("DUMMY_INIT", "100"), "init");
    client.end().succeeded().prints("cuInit=100").says("CUDA_ERROR_NO_DEVICE");
    assert_eq!(peer.try_hear(), None);
}

#[test]
fn without_a_driver_there_is_no_device() {
    for socket in ["", "/nonexistent/socket"] {
        Lab::new()
            .with("ACB_SOCKET", socket)
            .with("ACB_DRIVER", "/nonexistent/libcuda.so.1")
            .start("init")
            .end()
            .succeeded()
            .prints("cuInit=100")
            .says("ACB_DRIVER=/nonexistent/libcuda.so.1: ");
    }
}

#[test]
fn the_interposer_is_never_its_own_driver() {
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("libcuda.so.1");
    std::fs::copy(interposer(), &path).unwrap();
    for path in [interposer(), &path] {
        Lab::new()
            .with("ACB_DRIVER", path.display())
            .start("init")
            .end()
            .succeeded()
            .prints("cuInit=100")
            .says("that is the interposer of slurm-acb itself");
    }
}

#[test]
fn a_missing_assigner_is_waited_for() {
    let lab = Lab::new();
    let client = lab.start("init");
    // The client is likely to find nothing at first; it must find this in the end either way.
    let assigner = Assigner::listen(&lab.socket());
    let _peer = assigner.accept_client();
    client.end().succeeded().prints("cuInit=0");
}

#[test]
fn without_contact_the_program_goes_on_or_fails_as_it_was_told() {
    let lab = Lab::new().with("ACB_GRACE_MS", "50");
    lab.start("launch 0")
        .end_of_input()
        .succeeded()
        .prints("launch=0")
        .says("goes on without scheduling");
    let lab = Lab::new().with("ACB_GRACE_MS", "50").with("ACB_ON_FAILURE", "fail");
    lab.start("init").end().succeeded().prints("cuInit=802").says("client.sock");
}

#[test]
fn an_assigner_that_never_answers_is_no_assigner() {
    let lab = Lab::new().with("ACB_GRACE_MS", "50");
    let _assigner = Assigner::listen(&lab.socket());
    lab.start("init")
        .end()
        .succeeded()
        .prints("cuInit=0")
        .says("no answer from the GPU assigner at");
}

#[test]
fn garbage_instead_of_a_welcome_is_told_and_survived() {
    let lab = Lab::new();
    let assigner = Assigner::listen(&lab.socket());
    let client = lab.start("init");
    let mut peer = assigner.accept();
    peer.stream.write_all(b"\xff\xff\xff\xff\xffHTTP/1.1 400 Bad Request\r\n").unwrap();
    client.end().succeeded().prints("cuInit=0").says("is no GPU assigner of this version");
}

#[test]
fn a_refusal_is_told_and_is_an_error() {
    let lab = Lab::new();
    let assigner = Assigner::listen(&lab.socket());
    let client = lab.start("init");
    let mut peer = assigner.accept();
    peer.hello();
    peer.say(Say::Refused(Refused {
        code: RefusedCode::Impossible.into(),
        reason: "3 GPUs wanted, there are 2".into(),
    }));
    client.end().succeeded().prints("cuInit=100").says("3 GPUs wanted, there are 2");
}

#[test]
fn a_bad_variable_is_named() {
    Lab::new()
        .with("ACB_GPUS", "some")
        .start("init")
        .end()
        .succeeded()
        .prints("cuInit=802")
        .says("ACB_GPUS=some: ");
}

#[test]
fn an_assigner_that_restarts_in_the_middle_of_cuinit_is_waited_for() {
    let lab = Lab::new();
    let assigner = Assigner::listen(&lab.socket());
    let client = lab.start("init");
    let mut peer = assigner.accept();
    peer.hello();
    peer.say(Say::Welcome(welcome()));
    assert_eq!(peer.hear(), Hear::Bind(Default::default()));
    drop(peer);
    let _peer = assigner.accept_client();
    client.end().succeeded().prints("cuInit=0");
    assert_eq!(lab.driver_calls(), [format!("cuInit 0 {UUID}")]);
}

/// A daemon closes what it has not opened; its own files may get the same numbers.
#[test]
fn a_program_that_closes_all_descriptors_keeps_its_files_and_its_place() {
    let files = tempfile::tempdir().unwrap();
    let (lab, assigner, mut client, mut peer) =
        start(&format!("close-all {}", files.path().display()));
    peer.grant(1);
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    client.tell("close");
    wait_until("its files", || std::fs::read_dir(files.path()).unwrap().count() > 1000);
    // Whether this is heard or lost, or the connection is gone by now, the client comes back and says what it holds.
    let wanted = AssignerMessage { kind: Some(Say::Wanted(Wanted { epoch: 1 })) };
    let _ = peer.stream.write_all(&encode(&wanted));
    let mut peer = assigner.accept();
    assert_eq!(peer.hello().held.expect("held is stated").epoch, 1);
    peer.say(Say::Welcome(welcome()));
    peer.want(1);
    peer.release();
    client.tell("launch");
    peer.grant(2);
    client.tell("check");
    client.end().succeeded();
}

#[test]
fn a_choice_that_cannot_be_overwritten_is_replaced() {
    let (lab, _assigner, client, _peer) = start("literal");
    client.end().succeeded().prints("cuInit=0");
    assert_eq!(lab.driver_calls(), [format!("cuInit 0 {UUID}")]);
}

#[test]
fn a_driver_that_is_newer_than_the_list_is_told_with_what_it_has_more() {
    let (_lab, _assigner, client, _peer) =
        start_in(Lab::new().with("DUMMY_VERSION", "99000"), "init");
    client
        .end()
        .succeeded()
        .says("is of CUDA 99.0, and this slurm-acb knows CUDA")
        .says("the first is cuBrandNewer")
        .says("update slurm-acb");
}

#[test]
fn it_is_said_that_nccl_registers_nothing_for_graphs() {
    for (value, says) in [("0", true), ("1", false)] {
        let (_lab, _assigner, client, _peer) =
            start_in(Lab::new().with("NCCL_GRAPH_REGISTER", value).with("ACB_LOG", "info"), "init");
        let ended = client.end().succeeded();
        assert_eq!(ended.stderr().contains("NCCL_GRAPH_REGISTER=0"), says, "{}", ended.text());
    }
}
