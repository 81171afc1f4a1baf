//! What two processes share on one GPU: events, pools, memory. Each has an assigner of its own, so that every word of both is heard.

use crate::play::{MIB, Play, gpu, paged_welcome, start_scenario};
use crate::setup::{Ended, Lab};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{Granted, RoomKind, RoomVerdict};

/// One that hands over, and one that is handed something. The second one is started when the first one pauses.
fn pair(lab: Lab, one: &str, other: &str) -> (Play, Play) {
    let folder = lab.folder.path().to_owned();
    let config = folder.join("gpu.toml");
    let lab = lab.with("ACB_TEST_FOLDER", folder.display());
    let theirs = Lab::on_software_gpu("")
        .with("SIMCUDA_CONFIG", config.display())
        .with("ACB_TEST_FOLDER", folder.display());
    let play =
        |lab, words| start_scenario(lab, &format!("between {words}"), paged_welcome(), vec![gpu()]);
    (play(lab, one), play(theirs, other))
}

fn alone(words: &str) -> Play {
    let lab = Lab::on_software_gpu("");
    let folder = lab.folder.path().to_owned();
    let lab = lab.with("ACB_TEST_FOLDER", folder.display());
    start_scenario(lab, &format!("between {words}"), paged_welcome(), vec![gpu()])
}

#[track_caller]
pub(crate) fn returned(play: &mut Play, bytes: u64) {
    match play.peer.hear() {
        Hear::RoomReturn(back) => assert_eq!((back.device, back.bytes), (0, bytes)),
        other => panic!("RoomReturn expected: {other:?}"),
    }
}

/// All went well but for these words.
#[track_caller]
pub(crate) fn ends(play: Play, but: &[&str]) -> Ended {
    let ended = play.end();
    let out = ended.stdout();
    let answers = out.lines().filter(|line| line.as_bytes().get(1) == Some(&b'='));
    let bad: Vec<&str> = answers.filter(|line| !line.ends_with("=0")).collect();
    assert_eq!(bad, but, "{}", ended.text());
    ended
}

#[test]
fn a_stream_waits_for_another_processs_event_which_ends_with_its_lease() {
    let (mut one, mut other) =
        pair(Lab::on_software_gpu(""), "e . h r q . H y q .", ". E q s . m8 w7 q v7 d .");
    one.client.tell("on");
    one.peer.grant(1);
    // The event is recorded, and not over.
    one.peer.hears_nothing();
    other.client.tell("on");
    other.peer.hears_nothing();
    // Whoever waits for it wants a lease before it does anything.
    other.client.tell("on");
    other.claim(8 * MIB);
    other.peer.acquire();
    one.peer.recall(1);
    one.peer.hears_nothing();
    one.client.tell("on");
    one.peer.release();
    other.peer.say(Say::Granted(Granted { epoch: 1, resident: false }));
    other.credit(8 * MIB);
    other.ready(1);
    ends(other, &["q=600"]).prints("wrong=0");
    ends(one, &["q=600"]);
}

#[test]
fn an_event_that_others_have_lives_on_without_the_first() {
    let (mut one, mut other) = pair(Lab::on_software_gpu(""), "e . d .", ". E . q r y q d .");
    other.client.tell("on");
    // Opened before it is destroyed: a record of their own is theirs to wait for.
    other.peer.hears_nothing();
    one.client.tell("on");
    ends(one, &[]);
    other.client.tell("on");
    ends(other, &[]);
}

#[test]
fn a_pool_for_other_processes_counts_where_it_is_until_its_end() {
    let words = "p x a64 l w7 . f0 t u a32 . D . f1 .";
    let (mut one, mut other) =
        pair(Lab::on_software_gpu(""), words, ". P L64 v7 u . A4 c a4 f0 D .");
    one.room(64 * MIB);
    one.peer.grant(1);
    one.ready(1);
    one.shows(&[("pools", 64 * MIB)]);
    one.take_back(1);
    // Who imports has nothing of its own, and waits for its turn.
    other.client.tell("on");
    other.peer.grant(1);
    other.ready(1);
    other.peer.hears_nothing();
    other.shows(&[]);
    // A pool of another process's gives no memory, nor can it be the current one.
    other.client.tell("on");
    other.claim(4 * MIB);
    other.credit(4 * MIB);
    other.room(4 * MIB);
    returned(&mut other, 4 * MIB);
    ends(other, &["c=1", "a=1"]).prints("wrong=0").prints("used=64 reserved=64");
    // Freed and trimmed, it is the pool's still.
    one.client.tell("on");
    one.room(32 * MIB);
    one.shows(&[("pools", 96 * MIB)]);
    one.client.tell("on");
    returned(&mut one, 64 * MIB);
    one.shows(&[("pools", 32 * MIB)]);
    one.client.tell("on");
    returned(&mut one, 32 * MIB);
    one.shows(&[]);
    ends(one, &[]).prints("used=0 reserved=64");
}

#[test]
fn what_streams_allocate_of_a_pool_for_others_counts_too() {
    let mut one = alone("p c A64 . f0 D .");
    one.room(64 * MIB);
    one.shows(&[("pools", 64 * MIB)]);
    one.client.tell("on");
    returned(&mut one, 64 * MIB);
    one.shows(&[]);
    ends(one, &[]);
}

#[test]
fn a_pool_for_which_there_is_no_room_gives_no_memory() {
    let mut one = alone("p a64 u .");
    let request = one.peer.room_request();
    one.peer.room_reply(request.seq, RoomVerdict::Denied, "held by 77 (python3)");
    let ended = ends(one, &["a=2"]).prints("used=0 reserved=0");
    ended.says("cuMemAllocFromPoolAsync: 64.0 MiB on GPU 0 refused").says("held by 77 (python3)");
}

#[test]
fn memory_for_other_machines_counts_where_it_was_made() {
    let (mut one, mut other) = pair(Lab::on_software_gpu(""), "F16 w7 . v9 .", ". g16 v7 w9 .");
    one.room(16 * MIB);
    one.peer.grant(1);
    one.ready(1);
    one.shows(&[("exported", 16 * MIB)]);
    one.take_back(1);
    other.client.tell("on");
    other.peer.grant(1);
    other.ready(1);
    other.peer.hears_nothing();
    other.shows(&[]);
    other.take_back(1);
    one.client.tell("on");
    one.peer.grant(2);
    ends(other, &[]).prints("wrong=0");
    ends(one, &[]).prints("wrong=0");
}

#[test]
fn without_the_pager_memory_is_shared_by_the_old_handles() {
    let lab = Lab::on_software_gpu("").with("ACB_PAGER", "off");
    let (mut one, mut other) = pair(lab, "m8 w7 i . v9 .", ". I8 v7 I8 w9 C C C .");
    let request = one.peer.room_request();
    assert_eq!(request.kind(), RoomKind::Memory);
    one.peer.room_reply(request.seq, RoomVerdict::Granted, "");
    one.peer.grant(1);
    one.take_back(1);
    other.client.tell("on");
    other.peer.grant(1);
    other.peer.hears_nothing();
    other.shows(&[]);
    other.take_back(1);
    one.client.tell("on");
    one.peer.grant(2);
    ends(one, &[]).prints("wrong=0");
    // As often closed as opened; then it is no more.
    ends(other, &["C=1"]).prints("wrong=0");
}
