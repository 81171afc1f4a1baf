//! Memory shared by handles of the old kind, of which the driver has none for paged memory.

use crate::between::{ends, returned, room, shows};
use crate::play::{MIB, Play, gpu, paged_welcome, start_scenario};
use crate::setup::{Lab, wait_until};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{Evict, Granted};

/// One that hands over, and one that is handed something; what they say goes to files.
fn pair(one: &str, other: &str) -> (Play, Play) {
    let first = Lab::on_software_gpu("");
    let folder = first.folder.path().to_owned();
    let config = folder.join("gpu.toml");
    let second = Lab::on_software_gpu("").with("SIMCUDA_CONFIG", config.display());
    let play = |lab: Lab, words: &str| {
        let log = lab.folder.path().join("log");
        let lab = lab.with("ACB_TEST_FOLDER", folder.display()).with("ACB_LOG_FILE", log.display());
        start_scenario(lab, &format!("between {words}"), paged_welcome(), vec![gpu()])
    };
    (play(first, one), play(second, other))
}

/// Waits until a program's interposer has said something so often.
#[track_caller]
fn said(play: &Play, text: &str, times: usize) {
    let log = play.lab.folder.path().join("log");
    wait_until(text, || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.matches(text).count() >= times)
    });
}

const OPEN: &str = "are open in another process";

/// A lease with what is to come to the GPU for it.
fn lease(play: &mut Play, epoch: u64, credit: u64) {
    play.peer.acquire();
    play.peer.say(Say::Granted(Granted { epoch, resident: false }));
    if credit > 0 {
        play.credit(credit);
    }
    play.ready(epoch);
}

/// Everything is asked back; what goes, and why the rest stays.
fn asked_back(play: &mut Play, bytes: u64) -> (u64, String) {
    play.peer.say(Say::Evict(Evict { device: 0, bytes }));
    let mut moved = 0;
    loop {
        match play.peer.hear_moves() {
            Hear::Evicted(evicted) if evicted.failed.is_empty() => moved += evicted.bytes,
            Hear::Evicted(evicted) => return (moved, evicted.failed),
            other => panic!("Evicted expected: {other:?}"),
        }
    }
}

#[test]
fn another_process_opens_memory_which_stays_until_it_is_freed() {
    let one = "m8 w3 m40 w7 i . v9 f1 .";
    let (mut one, mut other) = pair(one, ". I40 v7 I40 w9 C C C .");
    one.claim(8 * MIB);
    lease(&mut one, 1, 8 * MIB);
    one.claim(40 * MIB);
    one.credit(40 * MIB);
    shows(&mut one, &[("ipc", 40 * MIB)]);
    one.take_back(1);
    let (moved, why) = asked_back(&mut one, 48 * MIB);
    assert_eq!(moved, 8 * MIB);
    assert!(why.contains("40.0 MiB (ipc)"), "{why}");
    // Who opens it has nothing of its own, waits for its turn to work, and the two take turns.
    other.client.tell("on");
    other.peer.grant(1);
    other.ready(1);
    other.peer.hears_nothing();
    shows(&mut other, &[]);
    other.take_back(1);
    one.client.tell("on");
    lease(&mut one, 2, 8 * MIB);
    // Nobody has it open any more.
    assert_eq!(one.returned().bytes, 40 * MIB);
    said(&one, "stays on GPU 0 from now on", 1);
    ends(one, &[]).prints("wrong=0");
    // As often closed as opened; then it is no more.
    ends(other, &["C=1"]).prints("wrong=0");
}

#[test]
fn a_handle_means_the_allocation_wherever_it_lies_in_its_chunk() {
    let (mut one, mut other) = pair("k100 w5 k300 w7 i . v9 .", ". J300 v7 w9 C .");
    one.claim(2 * MIB);
    lease(&mut one, 1, 2 * MIB);
    shows(&mut one, &[("ipc", 2 * MIB)]);
    one.take_back(1);
    other.client.tell("on");
    lease(&mut other, 1, 0);
    other.peer.hears_nothing();
    other.take_back(1);
    one.client.tell("on");
    lease(&mut one, 2, 0);
    ends(other, &[]).prints("wrong=0");
    ends(one, &[]).prints("wrong=0");
}

#[test]
fn what_is_freed_while_others_have_it_counts_until_they_close_it() {
    let (mut one, mut other) = pair("m16 w7 i . f0 . .", ". I16 . v7 C . .");
    one.claim(16 * MIB);
    lease(&mut one, 1, 16 * MIB);
    shows(&mut one, &[("ipc", 16 * MIB)]);
    other.client.tell("on");
    said(&one, OPEN, 1);
    one.client.tell("on");
    one.peer.hears_nothing();
    shows(&mut one, &[("ipc", 16 * MIB)]);
    one.take_back(1);
    other.client.tell("on");
    lease(&mut other, 1, 0);
    assert_eq!(one.returned().bytes, 16 * MIB);
    other.take_back(1);
    one.client.tell("on");
    other.client.tell("on");
    ends(one, &[]);
    ends(other, &[]).prints("wrong=0");
}

#[test]
fn an_opener_that_is_killed_gives_memory_back() {
    let (mut one, mut other) = pair("m16 w7 i . f0 . .", ". I16 . .");
    one.claim(16 * MIB);
    lease(&mut one, 1, 16 * MIB);
    shows(&mut one, &[("ipc", 16 * MIB)]);
    other.client.tell("on");
    said(&one, OPEN, 1);
    one.client.tell("on");
    one.peer.hears_nothing();
    drop(other.client);
    assert_eq!(one.returned().bytes, 16 * MIB);
    one.client.tell("on");
    ends(one, &[]);
}

#[test]
fn memory_of_a_process_that_was_killed_counts_where_it_is_open() {
    let (mut one, mut other) = pair("m16 w7 i . .", ". I16 . v7 C .");
    one.claim(16 * MIB);
    lease(&mut one, 1, 16 * MIB);
    shows(&mut one, &[("ipc", 16 * MIB)]);
    other.client.tell("on");
    said(&one, OPEN, 1);
    // The lab is needed further on, for the GPU is of its folder.
    let Play { lab: _lab, client, .. } = one;
    drop(client);
    room(&mut other, 16 * MIB);
    shows(&mut other, &[("ipc", 16 * MIB)]);
    other.client.tell("on");
    lease(&mut other, 1, 0);
    returned(&mut other, 16 * MIB);
    ends(other, &[]).prints("wrong=0");
}

#[test]
fn what_cannot_be_opened_says_why() {
    let (mut one, mut other) = pair("m4 w7 i I4 . . f0 . .", ". I4 . I4 . I4 .");
    one.claim(4 * MIB);
    lease(&mut one, 1, 4 * MIB);
    shows(&mut one, &[("ipc", 4 * MIB)]);
    let handle = one.lab.folder.path().join("memory");
    let whole = std::fs::read(&handle).expect("it was handed over");
    // Of another machine.
    let mut changed = whole.clone();
    changed[8] ^= 1;
    std::fs::write(&handle, changed).expect("the folder is writable");
    other.client.tell("on");
    said(&other, "another machine's", 1);
    // Freed.
    std::fs::write(&handle, &whole).expect("the folder is writable");
    one.client.tell("on");
    one.client.tell("on");
    assert_eq!(one.returned().bytes, 4 * MIB);
    other.client.tell("on");
    said(&other, "it has freed it", 1);
    // Ended; in its own process it was there already.
    one.client.tell("on");
    let _lab = one.end_with("I=201");
    other.client.tell("on");
    said(&other, "Connection refused", 1);
    ends(other, &["I=1", "I=1", "I=1"]);
}

impl Play {
    /// The end of a client, of which the lab is needed still.
    fn end_with(self, said: &str) -> Lab {
        let Play { lab, mut client, .. } = self;
        client.tell("on");
        client.end().succeeded().prints(said);
        lab
    }
}

#[test]
fn a_forked_child_neither_serves_nor_holds_what_is_open() {
    let (mut one, mut other) = pair("m16 w7 i . f0 . .", ". I16 Y . C . X .");
    one.claim(16 * MIB);
    lease(&mut one, 1, 16 * MIB);
    shows(&mut one, &[("ipc", 16 * MIB)]);
    other.client.tell("on");
    said(&one, OPEN, 1);
    one.client.tell("on");
    one.peer.hears_nothing();
    // A child that outlives the closing has nothing of it.
    other.client.tell("on");
    assert_eq!(one.returned().bytes, 16 * MIB);
    other.client.tell("on");
    one.client.tell("on");
    ends(one, &[]);
    ends(other, &[]);
}
