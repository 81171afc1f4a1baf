//! Leases: who may submit, when a lease goes back, and what happens when the assigner goes away.

use crate::assigner::{Peer, UUID, start, start_in, start_with, welcome};
use crate::setup::{Lab, wait_until};
use acb_wire::frame::encode;
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{
    AssignerMessage, GrantSoon, Granted, Notice, OnFailure, Recall, ReleaseReason, Welcome,
};
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn nothing_is_submitted_before_the_grant() {
    let (lab, _assigner, mut client, mut peer) = start("launch 0");
    peer.acquire();
    peer.hears_nothing();
    assert_eq!(lab.count("cuLaunchKernel"), 0);
    peer.say(Say::Granted(Granted { epoch: 1, resident: false }));
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    client.tell("on");
    client.end().succeeded().prints("launch=0");
    assert_eq!(lab.count("FAULT"), 0);
}

/// Whoever reads the socket, the waiting call or the link thread: in pieces, behind another message.
#[test]
fn a_grant_arrives_in_pieces_and_in_company() {
    let (lab, _assigner, mut client, mut peer) = start("launch 0 0");
    peer.acquire();
    let granted = encode(&AssignerMessage {
        kind: Some(Say::Granted(Granted { epoch: 1, resident: false })),
    });
    peer.stream.write_all(&granted[..1]).unwrap();
    peer.hears_nothing();
    peer.stream.write_all(&granted[1..]).unwrap();
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    peer.want(1);
    assert_eq!(peer.release().epoch, 1);
    client.tell("on");
    peer.acquire();
    let notice = Say::Notice(Notice { text: "others are waiting too".into() });
    let both = [notice, Say::Granted(Granted { epoch: 2, resident: false })]
        .map(|kind| encode(&AssignerMessage { kind: Some(kind) }))
        .concat();
    peer.stream.write_all(&both).unwrap();
    wait_until("the second launch", || lab.count("cuLaunchKernel") == 2);
    client.tell("on");
    client.end().succeeded().says("others are waiting too");
    assert_eq!(lab.count("FAULT"), 0);
}

#[test]
fn an_unwanted_lease_stays_and_a_wanted_one_goes_back_when_idle() {
    let (lab, _assigner, mut client, mut peer) = start("launch 50 0");
    peer.grant(1);
    wait_until("the end of the kernel", || lab.count("cuCtxSynchronize") == 1);
    peer.hears_nothing();
    peer.want(1);
    let release = peer.release();
    assert_eq!((release.epoch, release.reason()), (1, ReleaseReason::Idle));
    client.tell("on");
    peer.grant(2);
    wait_until("the second launch", || lab.count("cuLaunchKernel") == 2);
    client.tell("on");
    client.end().succeeded();
    assert_eq!(lab.count("FAULT"), 0);
}

/// It may come unannounced, where the link thread sleeps for too long.
#[test]
fn a_release_for_idleness_is_announced_at_most_once() {
    // On a busy machine the link thread may sleep for too long many times.
    const LEASES: usize = 3000;
    let scenario = format!("launch{}", " 0".repeat(LEASES));
    let terms = Welcome { idle_us: 100, ..welcome() };
    let (lab, _assigner, mut client, mut peer) = start_with(Lab::new(), &scenario, terms);
    let was_announced = |epoch: u64, peer: &mut Peer| {
        let mut announced = vec![];
        loop {
            match peer.hear_any() {
                Some(Hear::ReleaseSoon(soon)) => announced.push(soon.epoch),
                Some(Hear::Release(release)) => break assert_eq!(release.epoch, epoch),
                Some(_) => {}
                None => panic!("no Release"),
            }
        }
        assert!(announced.is_empty() || announced == [epoch], "{announced:?}");
        !announced.is_empty()
    };
    let announced = (1..=LEASES as u64).any(|epoch| {
        peer.grant(epoch);
        wait_until("the launch", || lab.count("cuCtxSynchronize") as u64 == epoch);
        peer.want(epoch);
        let announced = was_announced(epoch, &mut peer);
        client.tell("on");
        announced
    });
    assert!(announced, "none of {LEASES} was");
}

/// A call that is told to stay awake reads its grant, and falls asleep again where none comes.
#[test]
fn a_grant_may_be_announced_and_need_not_come() {
    let (lab, _assigner, mut client, mut peer) = start("launch 0");
    peer.acquire();
    for _ in 0..3 {
        peer.say(Say::GrantSoon(GrantSoon {}));
        peer.hears_nothing();
        wait_until("the call sleeps", || state(client.pid()) == 'S');
    }
    assert_eq!(lab.count("cuLaunchKernel"), 0);
    let announced =
        [Say::GrantSoon(GrantSoon {}), Say::Granted(Granted { epoch: 1, resident: false })]
            .map(|kind| encode(&AssignerMessage { kind: Some(kind) }))
            .concat();
    peer.stream.write_all(&announced).unwrap();
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    client.tell("on");
    client.end().succeeded().prints("launch=0");
}

/// Of a process's first thread, as ps(1) shows it.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let after = stat.rsplit_once(") ").expect("its name is in parentheses").1;
    after.chars().next().expect("a state")
}

/// The time in which a lease lay unused because nobody else wanted it is not reported as work.
#[test]
fn the_work_ends_when_the_program_sees_its_end() {
    let (lab, _assigner, mut client, mut peer) = start("launch 50");
    let began = Instant::now();
    peer.grant(1);
    wait_until("the program has seen the end", || lab.count("paused") == 1);
    let seen = began.elapsed();
    peer.hears_nothing();
    peer.want(1);
    let busy = Duration::from_nanos(peer.release().busy_ns);
    assert!(busy.as_millis() >= 50 && busy <= seen, "{busy:?} {seen:?}");
    client.tell("on");
    client.end().succeeded();
}

#[test]
fn a_busy_stream_keeps_a_wanted_lease() {
    let (lab, _assigner, mut client, mut peer) = start("endless");
    peer.grant(1);
    peer.want(1);
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    peer.hears_nothing();
    client.tell("write the flag");
    peer.release();
    client.tell("on");
    client.end().succeeded();
}

#[test]
fn a_recall_drains_before_the_lease_goes_back() {
    let (lab, _assigner, mut client, mut peer) = start("launch 400");
    peer.grant(7);
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    peer.recall(7);
    let release = peer.release();
    assert_eq!((release.epoch, release.reason()), (7, ReleaseReason::Recalled));
    assert!(release.busy_ns >= 300_000_000, "the kernel was not waited for: {release:?}");
    client.tell("on");
    client.end().succeeded();
}

#[test]
fn a_call_that_waits_during_a_drain_asks_again() {
    let (lab, _assigner, mut client, mut peer) = start("launch 0 0");
    peer.grant(1);
    wait_until("the end", || lab.count("cuCtxSynchronize") == 1);
    peer.recall(1);
    peer.release();
    client.tell("on");
    peer.grant(2);
    wait_until("the second launch", || lab.count("cuLaunchKernel") == 2);
    client.tell("on");
    client.end().succeeded();
}

#[test]
fn a_per_thread_stream_is_waited_for() {
    let (lab, _assigner, mut client, mut peer) = start("launch-per-thread");
    peer.grant(1);
    wait_until("the launch", || lab.count("cuLaunchKernel_ptsz") == 1);
    peer.recall(1);
    peer.release();
    assert!(lab.count("cuEventRecord") > 0, "no event stood for the stream");
    client.tell("on");
    client.end().succeeded();
}

#[test]
fn a_capture_is_left_alone() {
    let (lab, _assigner, mut client, mut peer) = start("capture");
    peer.grant(1);
    wait_until("the capture", || lab.count("cuStreamBeginCapture") == 1);
    peer.want(1);
    peer.recall(1);
    peer.hears_nothing();
    client.tell("end it");
    peer.release();
    client.tell("on");
    client.end().succeeded();
    assert_eq!(lab.count("FAULT"), 0, "{:?}", lab.driver_calls());
}

/// A recall in the middle of a capture does not stop the calls that are captured.
#[test]
fn a_capture_goes_on_through_a_recall() {
    let (lab, _assigner, mut client, mut peer) = start("capture 1");
    peer.grant(1);
    wait_until("the capture", || lab.count("cuStreamBeginCapture") == 1);
    peer.recall(1);
    peer.hears_nothing();
    client.tell("launch, and end it");
    peer.release();
    client.tell("on");
    let ended = client.end().succeeded();
    assert!(!ended.stderr().contains("has not finished"), "{}", ended.text());
    assert_eq!(lab.count("FAULT"), 0, "{:?}", lab.driver_calls());
}

/// A stream that is destroyed with work in it goes when the work is done.
#[test]
fn work_of_a_destroyed_stream_is_waited_for() {
    for what in ["stream", "context"] {
        let (lab, _assigner, mut client, mut peer) = start(&format!("destroy-busy {what}"));
        peer.grant(1);
        wait_until("the end of the stream", || lab.count(&format!("{what} goes")) == 1);
        peer.recall(1);
        let release = peer.release();
        assert!(release.busy_ns >= 300_000_000, "{what}: not waited for: {release:?}");
        client.tell("on");
        client.end().succeeded();
        assert_eq!(lab.count("FAULT"), 0, "{:?}", lab.driver_calls());
    }
}

/// A handle that the driver refuses to destroy may be one that is destroyed already.
#[test]
fn a_context_destroyed_twice_is_not_asked_about() {
    let (lab, _assigner, mut client, mut peer) = start("destroy-twice");
    peer.grant(1);
    wait_until("the end of the kernel", || lab.count("cuCtxSynchronize") == 1);
    peer.want(1);
    peer.release();
    client.tell("on");
    client.end().succeeded();
    assert_eq!(lab.count("FAULT"), 0, "{:?}", lab.driver_calls());
}

/// Leases come and go while three threads make and destroy streams as fast as they can.
#[test]
fn no_destroyed_handle_is_asked_about() {
    let (lab, _assigner, mut client, mut peer) = start("streams");
    let (began, mut epoch, mut told) = (Instant::now(), 0, false);
    while let Some(heard) = peer.try_hear() {
        if matches!(heard, Hear::Acquire(_)) {
            epoch += 1;
            peer.stream.write_all(&grant_and_recall(epoch)).ok();
        }
        if !told && epoch > 10 && began.elapsed() > Duration::from_millis(1500) {
            client.tell("enough");
            told = true;
        }
    }
    client.end().succeeded().prints("done");
    assert_eq!(lab.count("FAULT"), 0);
}

fn grant_and_recall(epoch: u64) -> Vec<u8> {
    use acb_wire::v1::{Recall, Wanted};
    let orders = [
        Say::Granted(Granted { epoch, resident: false }),
        Say::Wanted(Wanted { epoch }),
        Say::Recall(Recall { epoch }),
    ];
    orders.into_iter().flat_map(|kind| encode(&AssignerMessage { kind: Some(kind) })).collect()
}

/// A cancelled thread unwinds without running what follows a call; what it held would stay held.
#[test]
fn a_cancelled_thread_ends_after_its_call_and_the_lease_goes_back() {
    let (lab, _assigner, mut client, mut peer) = start("cancel");
    peer.acquire();
    peer.hears_nothing();
    peer.say(Say::Granted(Granted { epoch: 1, resident: false }));
    wait_until("the first call", || lab.count("cuMemsetD8") == 1);
    client.tell("on");
    wait_until("the second call", || lab.count("cuMemsetD8") == 2);
    peer.want(1);
    assert_eq!(peer.release().epoch, 1);
    client.tell("on");
    peer.grant(2);
    client.tell("on");
    client.end().succeeded().prints("cancelled=1\npaused\ncancelled=1\npaused\nlaunch=0");
}

/// It has the turn to read the socket, and will never read it.
#[test]
fn a_call_that_is_stuck_in_a_signal_handler_keeps_no_grant_from_others() {
    let (lab, _assigner, mut client, mut peer) = start("stuck-call");
    peer.acquire();
    client.tell("on");
    wait_until("the handler", || lab.count("cuCtxSynchronize") == 1);
    peer.say(Say::Granted(Granted { epoch: 1, resident: true }));
    wait_until("the other call", || lab.count("cuLaunchKernel") == 1);
    client.end().succeeded().prints("paused\nlaunch=0");
}

/// The kernel ends only when the program writes its flag, and the write waits at the gate.
#[test]
fn an_endless_kernel_is_told_and_its_program_not_strangled() {
    let lab = Lab::new();
    let path = lab.folder.path().join("client.log");
    let lab = lab.with("ACB_LOG_FILE", path.display());
    let says = |what: &str| std::fs::read_to_string(&path).unwrap_or_default().contains(what);
    let (lab, _assigner, mut client, mut peer) = start_in(lab, "endless");
    peer.grant(1);
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    peer.recall(1);
    // Until the gate is closed, the write would slip through.
    wait_until("the closed gate", || says("no call passes the gate any more"));
    client.tell("write the flag");
    match peer.hear() {
        Hear::Stuck(stuck) => assert_eq!((stuck.epoch, &*stuck.kernel), (1, "kernel_10")),
        other => panic!("Stuck expected: {other:?}"),
    }
    peer.release();
    // Said after the lease has gone back, by a thread that the program's end does not wait for.
    wait_until("the end is told", || says("the GPU has finished"));
    client.tell("on");
    client.end().succeeded();
    for what in ["a kernel that does not end", "launched last: kernel_10"] {
        assert!(says(what), "{what}");
    }
}

/// Stopped while it holds the GPU, for longer than a new assigner waits for it: by then its lease may be another's.
#[test]
fn who_was_stopped_for_long_submits_nothing_before_it_knows_whose_its_lease_is() {
    let (lab, assigner, mut client, mut peer) = start("launch 0 0 0");
    peer.grant(4);
    wait_until("the first launch", || lab.count("cuLaunchKernel") == 1);
    client.stop();
    drop(peer);
    client.tell("on");
    let stopped = Instant::now();
    wait_until("the end of the settle time", || stopped.elapsed() > Duration::from_secs(2));
    client.go_on();
    let mut peer = assigner.accept();
    assert_eq!(peer.hello().held.expect("held is stated").epoch, 4);
    peer.hears_nothing();
    assert_eq!(lab.count("cuLaunchKernel"), 1);
    let over = [Say::Welcome(welcome()), Say::Recall(Recall { epoch: 4 })];
    let over = over.map(|kind| encode(&AssignerMessage { kind: Some(kind) })).concat();
    peer.stream.write_all(&over).unwrap();
    assert_eq!(peer.release().epoch, 4);
    peer.acquire();
    assert_eq!(lab.count("cuLaunchKernel"), 1);
    peer.say(Say::Granted(Granted { epoch: 5, resident: false }));
    wait_until("the second launch", || lab.count("cuLaunchKernel") == 2);
    client.tell("on");
    wait_until("the third launch", || lab.count("cuLaunchKernel") == 3);
    client.tell("on");
    client.end().succeeded();
}

/// The same, but nothing has become of its lease.
#[test]
fn who_was_stopped_for_long_goes_on_where_the_connection_is_whole() {
    let (lab, _assigner, mut client, mut peer) = start("launch 0 0");
    peer.grant(4);
    wait_until("the first launch", || lab.count("cuLaunchKernel") == 1);
    client.stop();
    client.tell("on");
    let stopped = Instant::now();
    wait_until("a long time", || stopped.elapsed() > Duration::from_secs(2));
    client.go_on();
    wait_until("the second launch", || lab.count("cuLaunchKernel") == 2);
    client.tell("on");
    client.end().succeeded();
}

#[test]
fn a_holder_computes_on_without_the_assigner_and_states_what_it_holds() {
    let (lab, assigner, mut client, mut peer) = start("launch 0 0 0");
    peer.grant(4);
    wait_until("the first launch", || lab.count("cuLaunchKernel") == 1);
    drop(peer);
    client.tell("on");
    wait_until("a launch without the assigner", || lab.count("cuLaunchKernel") == 2);
    let mut peer = assigner.accept();
    let held = peer.hello().held.expect("held is stated");
    assert_eq!(
        (held.client, held.bound, held.epoch, held.room),
        (5, vec![UUID.to_owned()], 4, vec![0])
    );
    peer.say(Say::Welcome(welcome()));
    peer.want(4);
    peer.release();
    client.tell("on");
    peer.grant(5);
    wait_until("the third launch", || lab.count("cuLaunchKernel") == 3);
    client.tell("on");
    client.end().succeeded().says("reconnected");
}

#[test]
fn a_waiting_client_asks_the_new_assigner() {
    let (lab, assigner, mut client, mut peer) = start("launch 0");
    peer.acquire();
    drop(peer);
    let mut peer = assigner.accept();
    assert_eq!(peer.hello().held.expect("held is stated").epoch, 0);
    peer.say(Say::Welcome(welcome()));
    peer.grant(9);
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    client.tell("on");
    client.end().succeeded();
}

fn lost_for_good(on_failure: OnFailure) -> (Lab, crate::setup::Ended) {
    let terms = Welcome { grace_ms: 100, on_failure: on_failure.into(), ..welcome() };
    let (lab, assigner, mut client, mut peer) = start_with(Lab::new(), "launch 0", terms);
    peer.acquire();
    drop(peer);
    drop(assigner);
    client.tell("on");
    let ended = client.end().succeeded();
    (lab, ended)
}

#[test]
fn after_grace_the_program_goes_on_alone() {
    let (lab, ended) = lost_for_good(OnFailure::Open);
    ended.prints("launch=0").says("goes on without scheduling");
    assert_eq!(lab.count("cuLaunchKernel"), 1);
}

#[test]
fn after_grace_the_program_fails_if_it_should() {
    let (lab, ended) = lost_for_good(OnFailure::Fail);
    ended.prints("launch=802").says("ACB_ON_FAILURE");
    assert_eq!(lab.count("cuLaunchKernel"), 0);
}

#[test]
fn garbage_in_mid_life_is_a_lost_connection() {
    let (lab, assigner, mut client, mut peer) = start("launch 0");
    peer.acquire();
    peer.stream.write_all(b"\x05\xff\xff\xff\xff\xff").unwrap();
    let mut peer = assigner.accept();
    peer.hello();
    peer.say(Say::Welcome(welcome()));
    peer.grant(1);
    wait_until("the launch", || lab.count("cuLaunchKernel") == 1);
    client.tell("on");
    client.end().succeeded().says("is no GPU assigner of this version");
}

/// Prints what a submission costs, and asserts nothing of it.
#[test]
fn a_submission_costs_little() {
    let (_lab, _assigner, client, mut peer) =
        start_in(Lab::new().with("ACB_LOG", "error"), "bench");
    peer.grant(1);
    let ended = client.end().succeeded().prints("added=");
    println!("{}", ended.stdout());
}

/// Whether it hears something now and then, or nothing. A machine that leaves the link thread without a processor for a second
/// makes a call wait rightly, so not all of them are looked at.
#[test]
fn who_runs_on_does_not_wait_to_be_certain_of_its_lease() {
    for hears in [false, true] {
        let (lab, _assigner, mut client, mut peer) = start("launch 0 0 0 0");
        peer.grant(1);
        for launch in 1..=4 {
            wait_until("a launch", || lab.count("cuLaunchKernel") == launch);
            let began = Instant::now();
            wait_until("a while", || {
                if hears {
                    peer.say(Say::Notice(Notice { text: "others are waiting too".into() }));
                }
                began.elapsed() > Duration::from_millis(1500)
            });
            client.tell("on");
        }
        let ended = client.end().succeeded();
        let waits = ended.stderr().matches("for the GPU").count();
        assert!(waits < 4, "hears: {hears}: each call waited\n{}", ended.stderr());
    }
}
