//! Memory that stays where it is: asked for before it is there, told by its kind, given back.

use crate::between::returned;
use crate::play::{MIB, Play, gpu, paged_welcome, start_scenario};
use crate::setup::Lab;
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::{RoomKind, RoomReply, RoomVerdict};

fn start(words: &str) -> Play {
    let lab = Lab::on_software_gpu("");
    start_scenario(lab, &format!("fixed {words}"), paged_welcome(), vec![gpu()])
}

/// The program asks for so many bytes, and has them not.
#[track_caller]
fn no_room(play: &mut Play, bytes: u64) {
    let request = play.peer.room_request();
    assert_eq!((request.bytes, request.kind()), (bytes, RoomKind::Memory));
    play.peer.room_reply(request.seq, RoomVerdict::Denied, "held by 77 (python3)");
}

/// Lets the program go on, through the gate if that is closed.
#[track_caller]
fn go_on_with_a_lease(play: &mut Play, epoch: u64) {
    play.client.tell("on");
    play.peer.grant(epoch);
}

/// So much is asked for, told as that, and given back when the program goes on.
#[track_caller]
fn comes_and_goes(play: &mut Play, kind: &str, bytes: u64) {
    play.room(bytes);
    play.shows(&[(kind, bytes)]);
    play.client.tell("on");
    returned(play, bytes);
    play.shows(&[]);
}

#[track_caller]
fn ends(play: Play, all: usize) {
    let ended = play.end();
    let good = ended.stdout().lines().filter(|line| line.ends_with("=0")).count();
    assert_eq!(good, all, "{}", ended.text());
}

#[test]
fn a_graphs_memory_counts_from_its_node_to_its_end() {
    for (allocate, free) in [("a", "f"), ("n", "N")] {
        let mut play = start(&format!("{allocate}200 {free}0 . i r . d . x ."));
        play.room(200 * MIB);
        play.shows(&[("graphs", 200 * MIB)]);
        go_on_with_a_lease(&mut play, 1);
        play.client.tell("on");
        // What can still run still has it.
        play.peer.hears_nothing();
        play.client.tell("on");
        returned(&mut play, 200 * MIB);
        play.shows(&[]);
        ends(play, 6);
    }
}

#[test]
fn what_a_graph_frees_is_not_asked_for_again() {
    let mut play = start("a200 f0 a200 f1 a250 . d .");
    play.room(200 * MIB);
    play.room(50 * MIB);
    play.shows(&[("graphs", 250 * MIB)]);
    play.client.tell("on");
    returned(&mut play, 250 * MIB);
    ends(play, 6);
}

#[test]
fn memory_allocated_in_a_capture_is_the_graphs() {
    let mut play = start("[ A200 F0 A100 ] . i . d x .");
    play.room(200 * MIB);
    play.shows(&[("graphs", 200 * MIB)]);
    go_on_with_a_lease(&mut play, 1);
    play.ready(1);
    play.client.tell("on");
    returned(&mut play, 200 * MIB);
    play.shows(&[]);
    ends(play, 8);
}

#[test]
fn a_graph_that_is_moved_into_another_goes_with_it() {
    let mut play = start("a200 f0 v . i r . d . x g .");
    play.room(200 * MIB);
    go_on_with_a_lease(&mut play, 1);
    play.ready(1);
    play.shows(&[("graphs", 200 * MIB)]);
    play.client.tell("on");
    play.peer.hears_nothing();
    play.client.tell("on");
    returned(&mut play, 200 * MIB);
    play.shows(&[]);
    play.end().prints("v=0").prints("r=0").prints("x=0").prints("g=0");
}

#[test]
fn memory_of_a_graph_that_is_destroyed_while_it_runs_counts_until_it_has_ended() {
    let mut play = start("[ A200 H F0 ] . i R d x g . y g .");
    play.room(200 * MIB);
    go_on_with_a_lease(&mut play, 1);
    play.ready(1);
    play.shows(&[("graphs", 200 * MIB)]);
    play.peer.hears_nothing();
    play.client.tell("on");
    returned(&mut play, 200 * MIB);
    play.shows(&[]);
    let ended = play.end();
    ended.prints("x=0").prints("g=200").prints("y=0").prints("g=0");
}

#[test]
fn it_goes_with_the_lease_too() {
    // The first graph's memory stays allocated: the driver never says that it has nothing for graphs.
    let mut play = start("a100 i . r [ A200 ] i d R x . .");
    play.room(100 * MIB);
    go_on_with_a_lease(&mut play, 1);
    play.room(200 * MIB);
    play.shows(&[("graphs", 300 * MIB)]);
    play.peer.hears_nothing();
    play.client.tell("on");
    play.peer.want(1);
    returned(&mut play, 200 * MIB);
    play.peer.release();
    play.shows(&[("graphs", 100 * MIB)]);
    play.end().prints("R=0").prints("x=0");
}

#[test]
fn a_capture_does_not_keep_a_graphs_memory() {
    let mut play = start("a200 f0 i . r d [ x g A100 ] .");
    play.room(200 * MIB);
    go_on_with_a_lease(&mut play, 1);
    returned(&mut play, 200 * MIB);
    play.room(100 * MIB);
    play.shows(&[("graphs", 100 * MIB)]);
    let ended = play.end();
    // Neither was the capture spoilt.
    ended.prints("x=0").prints("g=0").prints("A=0").prints("]=0");
}

#[test]
fn a_graph_for_which_there_is_no_room_gets_no_node() {
    let mut play = start("a200 .");
    no_room(&mut play, 200 * MIB);
    let ended = play.end().prints("a=2");
    ended.says("cuGraphAddMemAllocNode: 200.0 MiB on GPU 0 refused").says("held by 77 (python3)");
}

#[test]
fn variables_of_code_count_while_it_is_loaded() {
    let mut play = start("m128 . M . l128 . L .");
    for _ in 0..2 {
        comes_and_goes(&mut play, "modules", 128 * MIB);
        play.client.tell("on");
    }
    play.client.end().succeeded().prints("m=0").prints("M=0").prints("l=0").prints("L=0");
}

#[test]
fn variables_of_compressed_code_count_likewise() {
    let mut play = start("p128 . M . P128 . L .");
    for _ in 0..2 {
        comes_and_goes(&mut play, "modules", 128 * MIB);
        play.client.tell("on");
    }
    play.client.end().succeeded().prints("p=0").prints("M=0").prints("P=0").prints("L=0");
}

/// The program asks what it has on the GPU, and hears so many MiB.
#[track_caller]
fn size(play: &mut Play, mib: u64) {
    let request = play.peer.room_request();
    assert_eq!((request.device, request.bytes, request.kind()), (0, 0, RoomKind::ProcessSize));
    play.peer.say(Say::RoomReply(RoomReply {
        seq: request.seq,
        verdict: RoomVerdict::Granted.into(),
        bytes: mib * MIB,
        ..RoomReply::default()
    }));
}

#[test]
fn variables_of_code_that_cannot_be_read_are_measured() {
    for (words, good) in [("u128 . M .", ["u=0", "M=0"]), ("U128 . L .", ["U=0", "L=0"])] {
        let mut play = start(words);
        play.peer.grant(1);
        play.ready(1);
        size(&mut play, 300);
        size(&mut play, 428);
        comes_and_goes(&mut play, "modules", 128 * MIB);
        let ended = play.end();
        ended.prints(good[0]).prints(good[1]).says("takes 128.0 MiB of GPU 0, as measured");
    }
}

#[test]
fn what_was_measured_and_finds_no_room_goes_again() {
    for words in ["u128 . m100 .", "U128 . l100 ."] {
        let mut play = start(words);
        play.peer.grant(1);
        play.ready(1);
        size(&mut play, 300);
        size(&mut play, 428);
        no_room(&mut play, 128 * MIB);
        play.shows(&[]);
        play.client.tell("on");
        play.room(100 * MIB);
        play.shows(&[("modules", 100 * MIB)]);
        let ended = play.end();
        let (failed, loaded) = words.split_once(" . ").expect("two words");
        ended.prints(&format!("{}=2", &failed[..1])).prints(&format!("{}=0", &loaded[..1]));
    }
}

#[test]
fn it_is_said_where_nobody_can_measure() {
    let mut play = start("u128 . M .");
    play.peer.grant(1);
    play.ready(1);
    size(&mut play, 0);
    play.shows(&[]);
    play.client.tell("on");
    let ended = play.end().prints("u=0").prints("M=0");
    ended.says("cuModuleLoadData: what the variables of this code take of GPU 0 is not counted");
}

#[test]
fn a_librarys_variables_count_in_each_context() {
    let mut play = start("l100 c . C . L .");
    play.room(100 * MIB);
    play.room(100 * MIB);
    play.shows(&[("modules", 200 * MIB)]);
    play.client.tell("on");
    returned(&mut play, 100 * MIB);
    play.shows(&[("modules", 100 * MIB)]);
    play.client.tell("on");
    returned(&mut play, 100 * MIB);
    play.shows(&[]);
    ends(play, 4);
}

#[test]
fn code_with_small_variables_is_part_of_its_context() {
    let mut play = start("m900k l900k .");
    play.peer.hears_nothing();
    ends(play, 2);
}

#[test]
fn variables_without_room_are_not_loaded() {
    let mut play = start("m128 .");
    no_room(&mut play, 128 * MIB);
    play.end().prints("m=2").says("cuModuleLoadData: 128.0 MiB on GPU 0 refused");
}

#[test]
fn heaps_and_stacks_count_with_what_they_exceed_the_usual() {
    let mut play = start("h264 q72 . h136 . h8 . q1 . s2048 .");
    // 8 MiB of each are the context's own.
    play.room(256 * MIB);
    play.room(64 * MIB);
    play.shows(&[("heaps", 320 * MIB)]);
    play.client.tell("on");
    returned(&mut play, 128 * MIB);
    play.shows(&[("heaps", 192 * MIB)]);
    play.client.tell("on");
    returned(&mut play, 128 * MIB);
    play.client.tell("on");
    returned(&mut play, 64 * MIB);
    play.shows(&[]);
    play.client.tell("on");
    // 132 multiprocessors of 2048 threads, a KiB more for each.
    play.room(132 * 2048 * 1024);
    play.shows(&[("heaps", 132 * 2048 * 1024)]);
    ends(play, 6);
}

#[test]
fn a_heap_without_room_stays_as_it_was() {
    let mut play = start("h264 .");
    no_room(&mut play, 256 * MIB);
    play.end().prints("h=2").says("cuCtxSetLimit: 256.0 MiB on GPU 0 refused");
}

#[test]
fn mipmaps_count_with_all_of_their_levels() {
    let mut play = start("Y64 . Z .");
    comes_and_goes(&mut play, "arrays", 96 * MIB);
    ends(play, 2);
}
