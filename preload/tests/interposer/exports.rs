//! What programs find, and that calls arrive as they were made.

use crate::assigner::start;
use crate::setup::{Lab, interposer, wait_until};
use acb_wire::v1::Granted;
use acb_wire::v1::assigner_message::Kind as Say;
use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn exactly_the_drivers_symbols_are_exported() {
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(interposer())
        .output()
        .expect("nm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let exported: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let listed = acb_cuda_abi::FUNCTIONS.iter().map(|function| function.symbol);
    let expected: BTreeSet<&str> =
        listed.chain(["acb_interposer", "acb_memory_v1", "acb_ordinal_v1"]).collect();
    assert_eq!(exported, expected);
}

#[test]
fn its_soname_is_the_drivers_and_it_needs_libc_alone() {
    let output =
        Command::new("readelf").arg("-d").arg(interposer()).output().expect("readelf runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Library soname: [libcuda.so.1]"), "{text}");
    for needed in text.lines().filter(|line| line.contains("(NEEDED)")) {
        assert!(
            ["[libc.so.6]", "[ld-linux-x86-64.so.2]", "[libgcc_s.so.1]"]
                .iter()
                .any(|name| needed.ends_with(name)),
            "{needed}"
        );
    }
}

#[test]
fn every_symbol_is_found_under_the_drivers_name() {
    let count = acb_cuda_abi::FUNCTIONS.len();
    Lab::new().start("symbols").end().succeeded().prints(&format!("found={count}"));
}

#[test]
fn arguments_arrive_unchanged() {
    let lab = Lab::new();
    let ended = lab.start("arguments").end().succeeded().says("first use of cuLinkAddData");
    assert_eq!(ended.stderr().matches("first use of cuTexRefSetMipmapLevelClamp").count(), 1);
    let expected = ["cuLinkAddData 1 2 3 4 5 6 7 8", "cuTexRefSetMipmapLevelClamp 9 0.5 1.25"];
    assert_eq!(lab.driver_calls(), [expected, expected].concat());
}

/// Also in a client, and without its turn; but a signal is work for the GPU.
#[test]
fn ways_out_arrive_unchanged_and_are_not_gated() {
    let (lab, _assigner, mut client, mut peer) = start("ways-out");
    client.tell("on");
    peer.hears_nothing();
    wait_until("all of them have come", || lab.count("cuDestroyExternalMemory") == 1);
    let calls = lab.driver_calls();
    let expected = [
        "cuGetExportTable 7 22",
        "cuImportExternalMemory 1 2 3",
        "cuExternalMemoryGetMappedBuffer 41 1 2",
        "cuImportExternalSemaphore 1 2",
        "cuMemHostRegister 11 12 13",
        "cuMemHostGetDevicePointer 11 14",
        "cuGraphicsMapResources 1 21 22",
        "cuGraphicsMapResources_ptsz 1 21 0",
        "cuMemHostUnregister 11",
        "cuDestroyExternalMemory 41",
    ];
    let came = calls.iter().skip_while(|call| !call.starts_with("cuGetExportTable"));
    // The program's own word that it waits may come before this is read.
    let came = came.filter(|call| *call != "paused");
    assert_eq!(came.collect::<Vec<_>>(), expected);
    client.tell("on");
    peer.acquire();
    assert_eq!(lab.count("cuSignalExternalSemaphoresAsync"), 0);
    peer.say(Say::Granted(Granted { epoch: 1, resident: false }));
    client
        .end()
        .succeeded()
        .prints("[0, 0, 0, 0, 0, 0, 0, 0, 0, 0] 3 41 42 43 44")
        .prints("signalled=0");
    assert_eq!(lab.count("cuSignalExternalSemaphoresAsync 43 31 1 0"), 1);
}

#[test]
fn what_the_driver_lacks_is_an_error_and_no_crash() {
    Lab::new()
        .start("unsupported")
        .end()
        .succeeded()
        .prints("result=801")
        .says("cuDeviceGetP2PAttribute is not in")
        .says("CUDA_ERROR_NOT_SUPPORTED: update the driver");
}

#[test]
fn addresses_are_replaced_by_name_version_and_flag() {
    let questions = [
        ("cuInit 12000 0", "0 0 interposer cuInit"),
        ("cuMemAlloc 12000 0", "0 0 interposer cuMemAlloc_v2"),
        ("cuMemFree 12000 2", "0 0 interposer cuMemFree_v2"),
        ("cuLaunchKernel 12000 0", "0 0 interposer cuLaunchKernel"),
        ("cuLaunchKernel 12000 1", "0 0 interposer cuLaunchKernel"),
        ("cuLaunchKernel 12000 2", "0 0 interposer cuLaunchKernel_ptsz"),
        ("cuLaunchKernel 4000 2", "0 0 interposer cuLaunchKernel"),
        ("cuDeviceGet 12000 0", "0 0 driver cuDeviceGet"),
        ("cuMemcpyHtoD 12000 0", "500 1 nothing"),
        ("cuNoSuchThing 12000 0", "500 1 nothing"),
        // Newer than the driver: it answers with what it has.
        ("cuLaunchKernel 13050 2", "0 0 interposer cuLaunchKernel_ptsz"),
    ];
    let scenario = questions.map(|(question, _)| question).join(",");
    let ended = Lab::new().start(&format!("addresses {scenario}")).end().succeeded();
    for (question, answer) in questions {
        assert!(
            ended.stdout().contains(&format!("{question}: {answer}\n")),
            "{question}\n{}",
            ended.text()
        );
    }
}

#[test]
fn a_driver_newer_than_the_list_keeps_its_hooks_where_nothing_changed() {
    Lab::new()
        .with("DUMMY_VERSION", "99000")
        .start("addresses cuLaunchKernel 99000 2,cuMemAlloc 99000 0")
        .end()
        .succeeded()
        .prints("cuLaunchKernel 99000 2: 0 0 interposer cuLaunchKernel_ptsz")
        .prints("cuMemAlloc 99000 0: 0 0 interposer cuMemAlloc_v2");
}

#[test]
fn what_a_newer_driver_has_changed_passes_through_with_a_word() {
    Lab::new()
        .with("DUMMY_VERSION", "99000")
        .with("DUMMY_NEWER", "1")
        .start("addresses cuLaunchKernel 99000 0,cuMemAlloc 99000 0,cuLaunchKernel 12000 0,cuBrandNew 99000 0")
        .end()
        .succeeded()
        .prints("cuLaunchKernel 99000 0: 0 0 driver dummyLaunchNewer")
        .says("cuLaunchKernel of CUDA 99000 is newer than this version of slurm-acb knows")
        .says("update slurm-acb")
        // What has not changed, and what the program asks for by an older version, is as before.
        .prints("cuMemAlloc 99000 0: 0 0 interposer cuMemAlloc_v2")
        .prints("cuLaunchKernel 12000 0: 0 0 interposer cuLaunchKernel")
        .prints("cuBrandNew 99000 0: 0 0 driver dummyBrandNew");
}
