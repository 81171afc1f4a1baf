//! Calls of the pager's that fail: what it tries instead, what people are told, and that no byte is wrong.

use crate::play::{MIB, Play, paged_welcome, start_in, start_with};
use crate::setup::{Ended, Lab, wait_until};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{Arena, MemoryReport, Welcome};

/// On a GPU that meets a fault.
fn faulty(fault: &str, words: &str) -> Play {
    start_in(Lab::on_software_gpu(&format!("[[fault]]\n{fault}\n")), words)
}

impl Ended {
    /// One line of the log names the call, the cause and what to do about it.
    #[track_caller]
    pub(crate) fn tells(self, call: &str, cause: &str, remedy: &str) -> Self {
        let log = self.stderr();
        let told = |line: &str| [call, cause, remedy].iter().all(|part| line.contains(part));
        assert!(
            log.lines().any(told),
            "no line with {call}, {cause}, {remedy} in\n{}",
            self.text()
        );
        self
    }
}

/// 48 MiB go to the host and come back, beside a fault; the content is right.
#[track_caller]
fn swaps_in_spite_of(fault: &str) -> Ended {
    let mut play = faulty(fault, "a48 w0:1 . c0:1 .");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.swap_out(1, 48 * MIB);
    play.turn(2, 48 * MIB);
    play.end().prints("read=0 wrong=0")
}

const FROM_CHUNKS: &str = "bytes = 8_000_000";

#[test]
fn a_copy_to_the_host_that_is_refused_is_tried_again() {
    swaps_in_spite_of(&format!("kind = 'copy_refused'\nway = 'out'\n{FROM_CHUNKS}\ntimes = 2"))
        .tells("cuMemcpyDtoHAsync", "CUDA_ERROR_UNKNOWN", "is tried again");
}

/// What the GPU holds before the copy has come is not the content.
#[test]
fn a_copy_to_the_gpu_that_is_refused_has_not_arrived() {
    // The first copy is the program's own.
    swaps_in_spite_of(&format!(
        "kind = 'copy_refused'\nway = 'in'\n{FROM_CHUNKS}\nat = 2\ntimes = 3"
    ))
    .tells("cuMemcpyHtoDAsync", "CUDA_ERROR_UNKNOWN", "is tried again");
}

/// Where it goes on failing, the memory stays and the assigner hears why; nothing is lost.
#[test]
fn memory_that_cannot_be_copied_stays_and_the_assigner_hears_why() {
    let fault = format!("kind = 'copy_refused'\nway = 'out'\n{FROM_CHUNKS}\ntimes = 3");
    let mut play = faulty(&fault, "a16 w0:1 . c0:1 .");
    play.claim(16 * MIB);
    play.turn(1, 16 * MIB);
    play.take_back(1);
    play.evict(16 * MIB);
    match play.peer.hear_moves() {
        Hear::Evicted(evicted) => {
            assert_eq!(evicted.bytes, 0);
            assert!(evicted.failed.contains("cuMemcpyDtoHAsync"), "{}", evicted.failed);
        }
        other => panic!("Evicted expected: {other:?}"),
    }
    play.client.tell("on");
    play.turn(2, 0);
    play.end().prints("read=0 wrong=0");
}

/// The assigner does not ask again, so the client finds out by itself whether what was in the way is over.
#[test]
fn memory_that_stayed_goes_by_itself_when_it_can() {
    for (kind, call) in [("unmap_fails", "cuMemUnmap"), ("release_fails", "cuMemRelease")] {
        let mut play = faulty(&format!("kind = '{kind}'\nat = 2\ntimes = 3"), "a48 w0:1 . c0:1 .");
        play.claim(48 * MIB);
        play.turn(1, 48 * MIB);
        play.take_back(1);
        play.evict(48 * MIB);
        let mut left = 0;
        let mut stayed = false;
        loop {
            let Hear::Evicted(evicted) = play.peer.hear_moves() else { panic!("not Evicted") };
            left += evicted.bytes;
            stayed |= evicted.failed.contains(call);
            if stayed && evicted.bytes > 0 {
                break;
            }
        }
        play.client.tell("on");
        play.turn(2, left);
        play.end().prints("read=0 wrong=0").tells(call, "CUDA_ERROR_UNKNOWN", "dmesg");
    }
}

/// Two contexts, of which one breaks in a copy of the pager's. Memory belongs to no context: that of the one which still works is
/// whole, whoever carried it.
fn breaks_in(way: &str, at: u32) -> Ended {
    let fault = format!("kind = 'copy_fails'\nway = '{way}'\n{FROM_CHUNKS}\nat = {at}");
    let mut play = faulty(&fault, "a64 w0:1 + a64 w1:2 . =0 c0:1 =1 c1:2 .");
    play.claim(64 * MIB);
    play.turn(1, 64 * MIB);
    play.claim(64 * MIB);
    play.credit(64 * MIB);
    wait_until("its work is done", || play.lab.count("paused") == 1);
    play.swap_out(1, 128 * MIB);
    play.turn(2, 128 * MIB);
    let ended = play.end();
    let reads: Vec<String> =
        ended.stdout().lines().filter(|l| l.contains("read=")).map(str::to_owned).collect();
    assert!(reads.contains(&"read=0 wrong=0".to_owned()), "{}", ended.text());
    assert!(reads.iter().all(|l| l == "read=0 wrong=0" || l.contains("read=700")), "{reads:?}");
    assert_eq!(reads.iter().filter(|l| l.contains("read=700")).count(), 1, "{}", ended.text());
    ended
}

#[test]
fn a_context_that_breaks_in_a_copy_to_the_host_takes_no_others_memory_along() {
    // Of the first allocation, then of the second.
    for at in [2, 6] {
        breaks_in("out", at).tells(
            "cuMemcpyDtoHAsync",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "another context",
        );
    }
}

#[test]
fn a_context_that_breaks_in_a_copy_to_the_gpu_takes_no_others_memory_along() {
    // The first two copies are the program's own.
    for at in [4, 8] {
        breaks_in("in", at).tells(
            "cuMemcpyHtoDAsync",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "another context",
        );
    }
}

/// With its only context a program loses its content, and is told so by its own next call.
#[test]
fn the_last_context_that_breaks_takes_the_content_along_and_the_program_does_not_wait() {
    for (way, at) in [("out", 1), ("in", 2)] {
        let fault = format!("kind = 'copy_fails'\nway = '{way}'\n{FROM_CHUNKS}\nat = {at}");
        let mut play = faulty(&fault, "a48 w0:1 . c0:1 .");
        play.claim(48 * MIB);
        play.turn(1, 48 * MIB);
        play.swap_out(1, 48 * MIB);
        play.turn(2, 48 * MIB);
        play.end().prints("read=700").tells(
            "cuMemcpy",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "start it anew",
        );
    }
}

#[test]
fn access_that_cannot_be_set_in_a_page_in_is_tried_again() {
    // The first three are the allocation's own.
    swaps_in_spite_of("kind = 'access_fails'\nat = 5\ntimes = 2").tells(
        "cuMemSetAccess",
        "CUDA_ERROR_UNKNOWN",
        "is tried again",
    );
}

/// Else the room would be promised to others while it is taken, and the way back be barred.
#[test]
fn memory_that_the_driver_does_not_let_go_stays_and_is_tried_again() {
    for (kind, call) in [("unmap_fails", "cuMemUnmap"), ("release_fails", "cuMemRelease")] {
        swaps_in_spite_of(&format!("kind = '{kind}'\nat = 2\ntimes = 2")).tells(
            call,
            "CUDA_ERROR_UNKNOWN",
            "is tried again",
        );
    }
}

#[test]
fn addresses_that_cannot_be_had_are_no_memory_and_no_claim() {
    let mut play = faulty("kind = 'reserve_fails'", "a40 a16 w1:1 c1:1 .");
    play.claim(40 * MIB);
    let back = play.returned();
    assert_eq!((back.bytes, back.resident), (40 * MIB, 0));
    play.claim(16 * MIB);
    play.turn(1, 16 * MIB);
    play.end().prints("allocate=2").prints("read=0 wrong=0").tells(
        "cuMemAddressReserve",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "virtual memory",
    );
}

/// Also where the cause is not that the GPU is full.
#[test]
fn memory_that_cannot_be_opened_is_not_allocated_and_harms_no_other() {
    let mut play = faulty("kind = 'access_fails'\nat = 2\ntimes = 0", "a2 w0:1 a40 c0:1 .");
    play.claim(2 * MIB);
    play.turn(1, 2 * MIB);
    play.claim(40 * MIB);
    play.credit(40 * MIB);
    assert_eq!(play.returned().bytes, 40 * MIB);
    play.end().prints("allocate=999").prints("read=0 wrong=0").tells(
        "cuMemSetAccess",
        "CUDA_ERROR_UNKNOWN",
        "dmesg",
    );
}

/// The driver lets it go from its addresses and not altogether, and then not back: the program hears of it, and reads no other bytes.
#[test]
fn memory_that_the_driver_neither_lets_go_nor_takes_back_is_out_of_reach() {
    let faults = "kind = 'release_fails'\nat = 2\n[[fault]]\nkind = 'map_fails'\nat = 4\n";
    let mut play = faulty(faults, "a48 w0:1 . c0:1 .");
    play.claim(48 * MIB);
    play.turn(1, 48 * MIB);
    play.take_back(1);
    play.evict(48 * MIB);
    let mut left = 0;
    loop {
        let Hear::Evicted(evicted) = play.peer.hear_moves() else { panic!("not Evicted") };
        left += evicted.bytes;
        if !evicted.failed.is_empty() {
            let why = "its memory cannot be moved to the host";
            assert!(evicted.failed.contains(why), "{}", evicted.failed);
            break;
        }
    }
    assert!(left < 48 * MIB, "what is out of reach is the GPU's still");
    play.client.tell("on");
    play.turn(2, left);
    let ended = play.end();
    assert!(!ended.stdout().contains("read=0"), "{}", ended.text());
    ended.tells("cuMemMap", "CUDA_ERROR_OUT_OF_MEMORY", "start it anew");
}

/// Memory that is mapped nowhere is copied through addresses for the time of the copy.
#[test]
fn a_window_that_cannot_be_opened_is_tried_again() {
    // The first addresses are the program's own.
    let mut play =
        faulty("kind = 'reserve_fails'\nat = 2\ntimes = 2", "m32 w0:1 u0 . n0 c0:1 x0 .");
    play.claim(32 * MIB);
    play.turn(1, 32 * MIB);
    play.swap_out(1, 32 * MIB);
    play.turn(2, 32 * MIB);
    play.returned();
    play.end().prints("read=0 wrong=0").tells(
        "cuMemAddressReserve",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "is tried again",
    );
}

/// The kernel's trial comes first; then it finds the same for all memory.
const LIES: &str = "[[fault]]\nkind = 'hash_lies'\nat = 2\ntimes = 0\n";

/// Three chunks that go twice, with other content each time; what was reported of it.
fn goes_twice(config: &str, compare: bool) -> (MemoryReport, Ended) {
    let words = "a48 w0:1 . w0:2 . c0:2 .";
    let welcome = Welcome { compare, ..paged_welcome() };
    let mut play = start_with(Lab::on_software_gpu(config), words, welcome);
    play.claim(48 * MIB);
    play.peer.say(Say::Arena(Arena { bytes: 48 * MIB }));
    play.turn(1, 48 * MIB);
    // The kernel is loaded before the arena is made.
    play.peer.wait_for_moves(|moves| moves.arena >= 16 * MIB);
    play.swap_out(1, 48 * MIB);
    play.turn(2, 48 * MIB);
    play.page_out(2, 48 * MIB);
    let moved = |moves: &MemoryReport| moves.paged_out + moves.clean;
    let moves = play.peer.wait_for_moves(|moves| moved(moves) == 96 * MIB);
    play.client.tell("on");
    play.turn(3, 48 * MIB);
    (moves, play.end())
}

/// The mode that does not believe the hash: one that lies is found out, and the content is right.
#[test]
fn comparing_finds_out_a_hash_that_lies() {
    let (moves, ended) = goes_twice(LIES, true);
    assert_eq!((moves.lies, moves.clean), (3, 0));
    ended.prints("read=0 wrong=0").says("Please report this");
}

/// Without comparing it is believed: the test above can fail.
#[test]
fn a_hash_that_lies_is_believed_where_nothing_is_compared() {
    let (moves, ended) = goes_twice(LIES, false);
    assert_eq!((moves.lies, moves.clean), (0, 48 * MIB));
    assert!(!ended.stdout().contains("wrong=0"), "{}", ended.text());
}

/// Where the kernel has no memory for its results, nothing is believed of it.
#[test]
fn without_results_of_the_kernel_all_is_copied() {
    let short = "[[fault]]\nkind = 'pin_fails'\nat = 1\ntimes = 0\n";
    let (moves, ended) = goes_twice(&format!("{LIES}{short}"), true);
    assert_eq!((moves.lies, moves.clean), (0, 0));
    ended.prints("read=0 wrong=0");
}

/// Where there is no place on the host to compare in, nothing is taken for unchanged.
#[test]
fn without_room_to_compare_all_is_copied() {
    let words = "a64 w0:1 . c0:1 . c0:1 .";
    let welcome = Welcome { compare: true, ..paged_welcome() };
    let mut play = start_with(Lab::on_software_gpu(""), words, welcome);
    play.claim(64 * MIB);
    play.turn(1, 64 * MIB);
    // What comparing needs is all there is, and the copies take it.
    play.peer.wait_for_moves(|moves| moves.arena == 64 * MIB);
    for epoch in 1..3 {
        play.swap_out(epoch, 64 * MIB);
        play.turn(epoch + 1, 64 * MIB);
    }
    let moved = |moves: &MemoryReport| moves.paged_out + moves.clean;
    let moves = play.peer.wait_for_moves(|moves| moved(moves) == 128 * MIB);
    assert_eq!((moves.clean, moves.lies, moves.arena), (0, 0, 64 * MIB));
    play.end().prints_times(2, "wrong=0");
}

/// Opening memory costs the same for one chunk as for its neighbours with it; here only so many calls succeed.
#[test]
fn neighbours_are_opened_together() {
    let fault = "[[fault]]\nkind = 'access_fails'\nat = 17\ntimes = 0";
    let blocks = "a2 ".repeat(16);
    let words = format!("{blocks}w0:1 w15:2 . c0:1 c15:2");
    let mut play = start_in(Lab::on_software_gpu(fault), &words);
    for _ in 0..16 {
        play.claim(2 * MIB);
    }
    play.turn(1, 32 * MIB);
    play.swap_out(1, 32 * MIB);
    play.turn(2, 32 * MIB);
    let ended = play.client.end().succeeded().prints_times(2, "wrong=0");
    assert!(!ended.stderr().contains("cuMemSetAccess of"), "{}", ended.text());
}
