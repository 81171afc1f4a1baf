//! Being a guest: in programs with thousands of threads and hardly any stack, that open the driver anew, that start others.

use crate::assigner::{start, start_in};
use crate::setup::{Lab, wait_until};
use acb_wire::v1::Granted;
use acb_wire::v1::assigner_message::Kind as Say;

/// How many threads of a process sleep.
fn sleepers(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let sleeps = |task: std::path::PathBuf| {
        std::fs::read_to_string(task.join("stat")).is_ok_and(|stat| stat.contains(") S "))
    };
    tasks.filter(|task| task.as_ref().is_ok_and(|task| sleeps(task.path()))).count()
}

#[test]
fn thousands_of_threads_with_the_smallest_stacks_wait_at_the_gate() {
    let (_lab, _assigner, mut client, mut peer) = start("crowd 2000");
    peer.acquire();
    // At the gate, or at a lock before it.
    wait_until("all wait", || sleepers(client.pid()) > 2000);
    peer.say(Say::Granted(Granted { epoch: 1, resident: false }));
    client.tell("on");
    client.end().succeeded().prints("launched=2000");
}

#[test]
fn a_driver_that_is_opened_and_closed_often_stays_in_use() {
    let (_lab, _assigner, client, mut peer) = start("reopen");
    peer.grant(1);
    client.end().succeeded().prints("launch=0");
}

/// The link thread goes on while a library is opened: its constructor may wait for what that thread reads.
#[test]
fn a_constructor_of_a_library_may_wait_for_the_gpu() {
    let lab = Lab::new();
    let library = lab.library("constructor.so", include_str!("constructor.c"));
    let (lab, _assigner, mut client, mut peer) =
        start_in(lab, &format!("open {}", library.display()));
    wait_until("the constructor", || lab.count("constructor") == 1);
    // It looks at what has been loaded every few hundred milliseconds.
    let mut begun = None;
    wait_until("some rounds of the link thread", || {
        let woken = wakes(client.pid(), "acb-link");
        begun = begun.or(woken);
        woken > begun.map(|begun| begun + 4)
    });
    client.tell("on");
    peer.grant(1);
    client.end().succeeded().prints("constructor: launch=0");
}

/// How often a thread of a process has gone to sleep; nothing where it has not given itself its name yet.
fn wakes(pid: u32, thread: &str) -> Option<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let read = |file: std::path::PathBuf| std::fs::read_to_string(file).unwrap_or_default();
    let mut tasks = tasks.filter_map(Result::ok).map(|task| task.path());
    let task = tasks.find(|task| read(task.join("comm")).trim() == thread);
    let status = read(task?.join("status"));
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok())
}

#[test]
fn programs_that_are_started_are_no_clients_and_disturb_none() {
    let (_lab, assigner, client, mut peer) = start("spawn");
    peer.grant(1);
    client.end().succeeded().prints("launch=0");
    assert!(assigner.is_left_alone(), "a program without CUDA said something");
}
