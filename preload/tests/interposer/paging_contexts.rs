//! Contexts that go while their memory is elsewhere or on its way: what was asked for comes, and nobody else's content is touched.

use crate::play::{MIB, Play, paged_welcome, start, start_with};
use crate::setup::Lab;
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{Arena, Granted, Welcome};

/// So slow that a move can be stopped in its middle.
fn slow(words: &str) -> Play {
    let lab = Lab::on_software_gpu("");
    let path = lab.folder.path().join("gpu.toml");
    let text = std::fs::read_to_string(&path).expect("the lab has written it");
    std::fs::write(&path, text.replace("2 GB", "100 MB")).expect("the folder is writable");
    // Its programs take their time between two calls.
    start_with(lab, words, Welcome { idle_us: 2_000_000, ..paged_welcome() })
}

impl Play {
    /// All of these claims come back, and what of them was there.
    #[track_caller]
    fn gives_back(&mut self, claim: u64, resident: u64) {
        let mut back = (0, 0);
        while back != (claim, resident) {
            let returned = self.returned();
            back = (back.0 + returned.bytes, back.1 + returned.resident);
            assert!(back.0 <= claim && back.1 <= resident, "{back:?} of {claim} and {resident}");
        }
    }

    fn arena(&mut self, bytes: u64) {
        self.peer.say(Say::Arena(Arena { bytes }));
        self.peer.wait_for_moves(|moves| moves.arena == bytes);
    }
}

#[test]
fn the_arena_outlives_the_context_in_which_it_was_pinned() {
    let mut play = start("a48 w0:1 . ! + a64 w1:2 . c1:2 .");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.arena(48 * MIB);
    play.client.tell("on");
    play.gives_back(48 * MIB, 48 * MIB);
    play.claim(64 * MIB);
    play.credit(64 * MIB);
    // It is pinned anew, and more of it.
    play.arena(64 * MIB);
    play.swap_out(1, 64 * MIB);
    play.turn(2, 64 * MIB);
    play.end().prints("read=0 wrong=0");
}

/// What lies at addresses of the arena is not to be taken for what lay there before.
#[test]
fn an_arena_that_has_shrunk_without_a_context_leaves_nothing_pinned() {
    let mut play = start("a48 w0:1 . ! . + a64 w1:2 . c1:2 .");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.arena(48 * MIB);
    play.client.tell("on");
    play.gives_back(48 * MIB, 48 * MIB);
    play.peer.say(Say::Arena(Arena { bytes: 0 }));
    play.client.tell("on");
    play.claim(64 * MIB);
    play.credit(64 * MIB);
    play.peer.wait_for_moves(|moves| moves.arena <= 32 * MIB);
    play.arena(64 * MIB);
    play.swap_out(1, 64 * MIB);
    play.turn(2, 64 * MIB);
    let ended = play.end().prints("read=0 wrong=0");
    assert!(!ended.stderr().contains("unpinned"), "{}", ended.text());
}

#[test]
fn a_context_that_goes_in_mid_page_out_leaves_the_others_memory_whole() {
    // The memory that stays is of the first context, then of the second.
    for (goes, stays) in [(1, 0), (0, 1)] {
        let mut play =
            slow(&format!("a64 w0:1 + a64 w1:2 s . ={goes} ! ={stays} c{stays}:{} .", stays + 1));
        play.claim(64 * MIB);
        play.turn(1, 64 * MIB);
        play.claim(64 * MIB);
        play.credit(64 * MIB);
        play.take_back(1);
        play.evict(128 * MIB);
        // One chunk has gone, and others are on their way.
        play.evicted(16 * MIB);
        play.client.tell("on");
        // All that was asked for comes, in one way or the other; the claims of what is gone come back; the rest is waited for.
        let (mut room, mut claims, mut waits) = (112 * MIB, 64 * MIB, false);
        while room > 0 || claims > 0 || !waits {
            match play.peer.hear_moves() {
                Hear::Evicted(evicted) if evicted.failed.is_empty() => room -= evicted.bytes,
                // While the context is on its way out.
                Hear::Evicted(_) => play.evict(room),
                Hear::RoomReturn(returned) => {
                    claims -= returned.bytes;
                    room -= returned.resident;
                }
                Hear::Acquire(_) => waits = true,
                other => panic!("{other:?}"),
            }
        }
        play.peer.say(Say::Granted(Granted { epoch: 2, resident: false }));
        play.credit(64 * MIB);
        play.ready(2);
        play.end().prints("destroyed=0").prints("read=0 wrong=0");
    }
}

#[test]
fn a_context_that_goes_in_mid_page_in_takes_what_has_come_along() {
    let mut play = slow("a64 w0:1 s . t0:2 . ! . + a48 w1:3 c1:3 .");
    play.claim(64 * MIB);
    play.turn(1, 64 * MIB);
    play.swap_out(1, 64 * MIB);
    // The thread waits for memory of which a part comes.
    play.peer.grant(2);
    play.credit(32 * MIB);
    play.peer.wait_for_moves(|moves| moves.paged_in >= 16 * MIB);
    play.client.tell("on");
    // Nothing is missing any more: the thread's call comes to the driver, whatever that says. The link thread may say so before the
    // other one has given back all.
    play.ready(2);
    play.gives_back(64 * MIB, 32 * MIB);
    play.client.tell("on");
    play.claim(48 * MIB);
    play.credit(48 * MIB);
    play.end().prints("destroyed=0").prints("read=0 wrong=0");
}

/// The old way to end a context: by the last one who detaches it.
#[test]
fn a_context_that_is_detached_takes_its_memory_along() {
    let mut play = start("a40 w0:1 > < c0:1 + =0 < =1 a4 w1:2 c1:2 .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 40 * MIB));
    play.claim(4 * MIB);
    play.credit(4 * MIB);
    play.end().prints("attached=0").prints_times(2, "detached=0").prints_times(2, "read=0 wrong=0");
}
