//! Paged memory, on the software GPU: claims, credits, what is where and when, and that no byte is wrong.

use crate::play::{MIB, Play, paged_welcome, start, start_in};
use crate::setup::{Lab, wait_until};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{Granted, RoomKind, RoomVerdict, Stay, Withdraw};

/// The assigner knew it, so that no message is spent on it in the path of a grant.
#[test]
fn ready_is_said_unless_the_grant_says_that_all_is_there() {
    for (said, resident) in [(true, false), (false, true)] {
        let mut play = start("a8 w0:1 . w0:2 c0:2 .");
        play.claim(8 * MIB);
        play.turn(1, 8 * MIB);
        play.take_back(1);
        play.client.tell("on");
        play.peer.acquire();
        play.peer.say(Say::Granted(Granted { epoch: 2, resident }));
        if said {
            play.ready(2);
        }
        play.peer.want(2);
        match play.peer.hear_moves() {
            Hear::Release(release) => assert_eq!(release.epoch, 2),
            other => panic!("Release expected: {other:?}"),
        }
        play.end();
    }
}

/// Memory that is away though the grant says otherwise comes first, and Ready says when.
#[test]
fn a_grant_that_is_wrong_about_memory_opens_no_gate() {
    let mut play = start("a8 w0:1 c0:1 .");
    play.claim(8 * MIB);
    play.peer.acquire();
    play.peer.say(Say::Granted(Granted { epoch: 1, resident: true }));
    play.peer.hears_nothing();
    play.credit(8 * MIB);
    play.ready(1);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn memory_without_a_lease_is_a_claim_and_comes_before_the_gate_opens() {
    let mut play = start("a40 w0:1 c0:1 .");
    play.claim(40 * MIB);
    play.peer.grant(1);
    play.credit(32 * MIB);
    play.peer.hears_nothing();
    play.credit(8 * MIB);
    assert_eq!(play.ready(1).bytes_in, 0, "there was nothing to copy");
    play.end().prints("read=0 wrong=0");
}

#[test]
fn content_survives_the_way_to_the_host_and_back_at_the_same_address() {
    let mut play = start("a40 a100k p0 w0:1 w1:2 . c0:1 c1:2 p0 .");
    play.claim(40 * MIB);
    play.claim(2 * MIB);
    play.turn(1, 42 * MIB);
    play.take_back(1);
    play.evict(42 * MIB);
    assert_eq!(play.evicted(42 * MIB), 4, "16, 16, 8 and 2 MiB, each at once");
    play.client.tell("on");
    assert_eq!(play.turn(2, 42 * MIB).bytes_in, 42 * MIB);
    let ended = play.end().prints_times(2, "wrong=0");
    let places: Vec<String> =
        ended.stdout().lines().filter(|l| l.contains("at=")).map(str::to_owned).collect();
    assert_eq!(places[0], places[1]);
}

#[test]
fn what_was_paged_in_and_not_used_is_not_copied_out_again() {
    let mut play = start("a32 w0:1 . c0:1 .");
    play.claim(32 * MIB);
    play.turn(1, 32 * MIB);
    play.page_out(1, 32 * MIB);
    // Prefetched, and asked back before its turn came.
    play.credit(32 * MIB);
    play.peer.wait_for_moves(|moves| moves.paged_in == 32 * MIB);
    play.evict(32 * MIB);
    play.evicted(32 * MIB);
    let moves = play.peer.wait_for_moves(|moves| moves.clean > 0);
    assert_eq!((moves.paged_out, moves.clean), (32 * MIB, 32 * MIB));
    play.client.tell("on");
    play.turn(2, 32 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn unused_credit_goes_first() {
    let mut play = start("a32 w0:1 . w0:2 .");
    play.claim(32 * MIB);
    play.turn(1, 32 * MIB);
    play.page_out(1, 32 * MIB);
    play.credit(8 * MIB);
    play.peer.hears_nothing();
    play.evict(8 * MIB);
    play.evicted(8 * MIB);
    play.client.tell("on");
    play.turn(2, 32 * MIB);
    play.end();
}

#[test]
fn only_as_much_leaves_as_is_asked_for() {
    let mut play = start("a48 w0:1 . c0:1 .");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.take_back(1);
    play.evict(10 * MIB);
    play.evicted(16 * MIB);
    play.peer.hears_nothing();
    play.client.tell("on");
    assert_eq!(play.turn(2, 16 * MIB).bytes_in, 16 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn many_small_allocations_are_one_claim() {
    let mut play = start(
        "a100k a200k a1k a512k w0:1 w1:2 w2:3 w3:4 c0:1 c1:2 c2:3 c3:4 f1 a150k w4:5 c3:4 c0:1 .",
    );
    play.claim(2 * MIB);
    play.turn(1, 2 * MIB);
    play.end().prints_times(6, "wrong=0");
}

#[test]
fn memory_claimed_under_a_lease_is_there_at_once() {
    let mut play = start("a2 w0:1 a40 w1:2 c1:2 c0:1 f1 .");
    play.claim(2 * MIB);
    play.turn(1, 2 * MIB);
    play.claim(40 * MIB);
    play.credit(16 * MIB);
    play.peer.hears_nothing();
    play.credit(24 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident, back.kind()), (40 * MIB, 40 * MIB, RoomKind::Paged));
    play.end().prints_times(2, "wrong=0");
}

#[test]
fn a_recall_ends_the_wait_for_credit() {
    let mut play = start("a2 w0:1 a40 w1:2 c1:2 .");
    play.claim(2 * MIB);
    play.turn(1, 2 * MIB);
    play.claim(40 * MIB);
    play.peer.hears_nothing();
    play.peer.recall(1);
    // The allocation has returned, and the program stands at the gate again.
    play.peer.release();
    play.turn(2, 40 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn a_denied_claim_is_out_of_memory() {
    let mut play = start("a40 a1 .");
    let request = play.peer.room_request();
    play.peer.room_reply(request.seq, RoomVerdict::Denied, "the host budget of 1 GiB is used up");
    play.claim(2 * MIB);
    play.end()
        .prints("allocate=2")
        .prints("allocate=0")
        .says("the host budget of 1 GiB is used up");
}

#[test]
fn freed_memory_that_is_absent_gives_its_claim_back() {
    let mut play = start("a40 ? f0 ? .");
    play.claim(40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 0));
    // Credit that was on its way has nothing to page in any more.
    play.credit(40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (0, 40 * MIB));
    play.client.tell("on");
    let total = 16 * 1024;
    play.client
        .end()
        .succeeded()
        .prints(&format!("info={}", total - 40))
        .prints(&format!("info={total}"));
}

#[test]
fn memory_freed_in_a_stream_is_used_again_there() {
    let mut play = start("A40 w0:1 p0 F0 A40 p1 w1:2 c1:2 F1 . s .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 40 * MIB));
    play.client.tell("on");
    let ended = play.end().prints("wrong=0");
    let out = ended.stdout();
    let places: Vec<&str> = out.lines().filter(|line| line.contains("at=")).collect();
    assert_eq!(places[0], places[1]);
}

#[test]
fn a_grant_in_mid_eviction_waits_for_its_end_and_then_for_memory() {
    let mut play = start("a64 w0:1 . c0:1 .");
    play.claim(64 * MIB);
    play.turn(1, 64 * MIB);
    play.take_back(1);
    play.evict(64 * MIB);
    play.client.tell("on");
    // Acquire comes among the chunks.
    let mut sum = 0;
    let mut acquired = false;
    while sum < 64 * MIB || !acquired {
        match play.peer.hear_moves() {
            Hear::Evicted(evicted) => sum += evicted.bytes,
            Hear::Acquire(_) => {
                acquired = true;
                play.peer.say(Say::Granted(Granted { epoch: 2, resident: false }));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sum, 64 * MIB);
    play.credit(64 * MIB);
    assert_eq!(play.ready(2).bytes_in, 64 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn credit_that_is_withdrawn_goes_back_and_comes_again_with_the_turn() {
    let mut play = start("a64 w0:1 . c0:1 .");
    play.claim(64 * MIB);
    play.turn(1, 64 * MIB);
    play.swap_out(1, 64 * MIB);
    play.peer.acquire();
    // Its turn is next, but what there is for it does for no chunk yet.
    play.credit(8 * MIB);
    play.peer.say(Say::Withdraw(Withdraw { device: 0 }));
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (0, 8 * MIB));
    play.peer.say(Say::Granted(Granted { epoch: 2, resident: false }));
    play.credit(64 * MIB);
    assert_eq!(play.ready(2).bytes_in, 64 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn what_a_lease_finds_on_the_gpu_stays() {
    // A chunk takes half a second.
    let lab = Lab::on_software_gpu("[[gpu]]\nlink_out = \"32 MB\"\n");
    let mut play = start_in(lab, "a160 w0:1 . c0:1 .");
    play.claim(160 * MIB);
    play.turn(1, 160 * MIB);
    play.take_back(1);
    play.client.tell("on");
    play.peer.acquire();
    play.evict(160 * MIB);
    play.peer.say(Say::Granted(Granted { epoch: 2, resident: false }));
    play.peer.say(Say::Stay(Stay { device: 0 }));
    let mut gone = 0;
    loop {
        match play.peer.hear_moves() {
            Hear::Evicted(evicted) => {
                gone += evicted.bytes;
                play.credit(evicted.bytes);
            }
            Hear::Ready(ready) => {
                assert_eq!(ready.epoch, 2);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(gone <= 64 * MIB, "{gone} bytes went after they might stay");
    play.end().prints("read=0 wrong=0");
}

#[test]
fn a_reconnecting_client_states_what_is_claimed_and_what_is_there() {
    let mut play = start("a48 w0:1 . c0:1 .");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.page_out(1, 16 * MIB);
    let Play { lab, assigner, mut client, peer } = play;
    drop(peer);
    let mut peer = assigner.accept();
    let held = peer.hello().held.expect("held is stated");
    assert_eq!((held.claimed, held.resident), (vec![48 * MIB], vec![32 * MIB]));
    peer.say(Say::Welcome(paged_welcome()));
    client.tell("on");
    let mut play = Play { lab, assigner, client, peer };
    play.turn(2, 16 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn without_an_assigner_all_memory_comes_back_and_the_gate_opens() {
    let lab = Lab::on_software_gpu("").with("ACB_GRACE_MS", "300");
    let mut play = start_in(lab, "a48 w0:1 . c0:1 a20 w1:2 c1:2 f0");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.page_out(1, 48 * MIB);
    let Play { lab, assigner, mut client, peer } = play;
    drop(peer);
    drop(assigner);
    std::fs::remove_file(lab.socket()).unwrap();
    client.tell("on");
    client
        .end()
        .succeeded()
        .says("goes on without scheduling")
        .prints("free=0")
        .prints_times(2, "wrong=0");
}

#[test]
fn the_arena_is_ready_before_it_is_needed_and_shrinks_on_demand() {
    let mut play = start("a48 w0:1 . c0:1 .");
    play.first_turn(48 * MIB);
    play.page_out(1, 48 * MIB);
    let moves = play.peer.wait_for_moves(|moves| moves.paged_out == 48 * MIB);
    assert_eq!(moves.pin_in_switch_ns, 0);
    play.client.tell("on");
    play.turn(2, 48 * MIB);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn with_the_pager_off_memory_is_plain() {
    let lab = Lab::on_software_gpu("").with("ACB_PAGER", "off");
    let mut play = start_in(lab, "a40 w0:1 c0:1 .");
    let request = play.peer.room_request();
    assert_eq!(request.kind(), RoomKind::Memory);
    play.peer.room_reply(request.seq, RoomVerdict::Granted, "");
    play.turn(1, 0);
    play.end().prints("read=0 wrong=0");
}

#[test]
fn a_programs_own_mappings_come_and_go_with_their_content() {
    let mut play = start("m32 w0:1 a2 w1:2 . c0:1 c1:2 u0 n0 c0:1 x0 .");
    play.claim(32 * MIB);
    // The first write waits at the gate; the next claim comes when it has passed.
    play.turn(1, 32 * MIB);
    play.claim(2 * MIB);
    play.credit(2 * MIB);
    play.swap_out(1, 34 * MIB);
    assert_eq!(play.turn(2, 34 * MIB).bytes_in, 34 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (32 * MIB, 32 * MIB));
    play.end().prints("unmapped=0").prints("released=0").prints_times(3, "wrong=0");
}

/// The driver has less than the assigner knows of: others make room for that, and the allocation is made once more.
#[test]
fn an_allocation_finds_room_that_a_full_gpu_did_not_have() {
    let lab = Lab::on_software_gpu("memory = 67108864\ncontext_bytes = 1048576");
    let outside = lab.outside();
    let stranger = outside.start("paged a40 .");
    wait_until("the stranger has its memory", || outside.count("paused") == 1);
    let mut play = start_in(lab, "a2 w0:1 a40 w1:1 c1:1 .");
    play.claim(2 * MIB);
    play.turn(1, 2 * MIB);
    play.claim(40 * MIB);
    play.credit(40 * MIB);
    assert_eq!(play.returned().bytes, 40 * MIB);
    let size = play.peer.room_request();
    assert_eq!(size.kind(), RoomKind::ProcessSize);
    play.peer.room_reply(size.seq, RoomVerdict::Denied, "nobody can tell");
    let more = play.peer.room_request();
    assert_eq!((more.bytes, more.kind()), (1 << 30, RoomKind::Memory));
    drop(stranger);
    play.peer.room_reply(more.seq, RoomVerdict::Granted, "");
    play.claim(40 * MIB);
    play.credit(40 * MIB);
    let size = play.peer.room_request();
    play.peer.room_reply(size.seq, RoomVerdict::Denied, "nobody can tell");
    play.end().prints("wrong=0").prints_times(2, "allocate=0");
}

/// What the driver would refuse is refused at once, also while nothing of it can be mapped; and it is not tried for ever afterwards.
#[test]
fn a_crooked_mapping_is_refused_whether_or_not_it_is_the_programs_turn() {
    let mut play = start("Q4 a2 w0:1 Q4 .");
    play.claim(4 * MIB);
    play.returned();
    play.claim(2 * MIB);
    play.turn(1, 2 * MIB);
    play.claim(4 * MIB);
    play.credit(4 * MIB);
    let ended = play.end();
    for line in [
        "not mapped=[1, 1, 1, 1, 1, 1]",
        "mapped=0",
        "not in part=[1, 1, 1, 1, 1, 1, 1, 1]",
        "whole=[0, 0, 0]",
        "no address=1",
    ] {
        let found = ended.stdout().lines().filter(|said| said.ends_with(line)).count();
        assert_eq!(found, 2, "{line}: {}", ended.text());
    }
}

#[test]
fn memory_that_is_mapped_nowhere_keeps_its_content_and_its_bytes() {
    let mut play = start("m32 w0:1 u0 . n0 c0:1 q0 x0 .");
    play.claim(32 * MIB);
    play.turn(1, 32 * MIB);
    play.swap_out(1, 32 * MIB);
    play.turn(2, 32 * MIB);
    play.returned();
    play.end().prints("read=0 wrong=0").prints("size=33554432 kind=2 device=0 same=true");
}

#[test]
fn questions_about_absent_and_small_memory_are_answered() {
    let mut play = start("a40 q0 a3k q1 .");
    play.claim(40 * MIB);
    play.claim(2 * MIB);
    play.end()
        .prints("size=41943040 kind=2 device=0 same=true")
        .prints("size=3072 kind=2 device=0 same=true");
}

/// Events are asked for what streams have freed; a capture elsewhere, of the strictest kind, is whole all the same.
#[test]
fn an_allocation_beside_a_capture_leaves_it_whole() {
    let lab = Lab::on_software_gpu("memory_bandwidth = \"20 MB\"");
    let mut play = start_in(lab, "A8 s o0:12 s .");
    play.claim(8 * MIB);
    play.turn(1, 8 * MIB);
    play.claim(12 * MIB);
    play.credit(12 * MIB);
    play.returned();
    play.end().prints("allocate=0").prints("captured=0");
}

#[test]
fn memory_freed_in_a_capture_goes_when_it_ends() {
    let mut play = start("a40 w0:1 [ f0 ] .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 40 * MIB));
    let ended = play.end();
    let out = ended.stdout();
    assert!(out.find("free=0") < out.find("captured=0"), "{}", ended.text());
}

#[test]
fn a_gpu_that_is_full_of_others_is_waited_for() {
    let lab = Lab::on_software_gpu("[[fault]]\nkind = \"map_fails\"\nat = 2\ntimes = 3\n");
    let mut play = start_in(lab, "a48 w0:1 c0:1 .");
    play.claim(48 * MIB);
    play.peer.grant(1);
    play.credit(48 * MIB);
    // As often as it fails the credit comes back, and others make room.
    for _ in 0..3 {
        match play.peer.hear_moves() {
            Hear::Short(short) => {
                assert!(short.device == 0 && short.bytes > 0, "{short:?}");
                play.credit(short.bytes);
            }
            other => panic!("Short expected: {other:?}"),
        }
    }
    play.ready(1);
    play.end().prints("read=0 wrong=0").says("programs outside of slurm-acb may hold its memory");
}

#[test]
fn a_destroyed_context_takes_its_memory_along() {
    let mut play = start("a40 w0:1 a4 w1:2 ! .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    play.claim(4 * MIB);
    play.credit(4 * MIB);
    let mut back = (0, 0);
    while back != (44 * MIB, 44 * MIB) {
        let returned = play.returned();
        back = (back.0 + returned.bytes, back.1 + returned.resident);
    }
    play.end().prints("destroyed=0");
}
