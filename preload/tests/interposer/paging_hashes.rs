//! What is not copied, as a hash of it says: what the host has already, and zeros.

use crate::play::{MIB, paged_welcome, start_in, start_with};
use crate::setup::{Lab, wait_until};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::{Arena, MemoryReport, Welcome};

#[test]
fn what_has_the_hash_of_its_host_copy_is_not_copied() {
    for compare in [false, true] {
        let lab = Lab::on_software_gpu("");
        let words = "a48 w0:1 . c0:1 . c0:1 .";
        let mut play = start_with(lab, words, Welcome { compare, ..paged_welcome() });
        play.claim(48 * MIB);
        play.peer.say(Say::Arena(Arena { bytes: 48 * MIB }));
        play.turn(1, 48 * MIB);
        // The kernel is loaded before the arena is made.
        let scratch = if compare { 4 * 16 * MIB } else { 0 };
        play.peer.wait_for_moves(|moves| moves.arena == 48 * MIB + scratch);
        play.page_out(1, 48 * MIB);
        // Read, but not changed, under a lease.
        play.client.tell("on");
        play.turn(2, 48 * MIB);
        play.page_out(2, 48 * MIB);
        let moves = play.peer.wait_for_moves(|moves| moves.clean > 0);
        assert_eq!((moves.paged_out, moves.clean), (48 * MIB, 48 * MIB), "compare: {compare}");
        play.client.tell("on");
        play.turn(3, 48 * MIB);
        play.end().prints_times(2, "wrong=0");
    }
}

/// The kernel is loaded as the context is made; where there is no memory for it then, when the gate is closed.
#[test]
fn a_kernel_that_found_no_memory_is_loaded_between_two_leases() {
    let fault = "[[fault]]\nkind = 'out_of_memory'\nat = 1";
    let mut play = start_in(Lab::on_software_gpu(fault), "a48 w0:1 . c0:1 . c0:1 . c0:1 .");
    play.first_turn(48 * MIB);
    for epoch in 1..4 {
        play.take_back(epoch);
        // It comes as soon as nothing runs; what is asked back before is copied.
        play.evict(48 * MIB);
        play.evicted(48 * MIB);
        play.client.tell("on");
        play.turn(epoch + 1, 48 * MIB);
    }
    play.peer.wait_for_moves(|moves| moves.clean > 0);
    let ended = play.end().prints_times(3, "wrong=0");
    ended.says("there is no memory for the hash kernel");
}

/// What nothing can be found out about is copied.
#[test]
fn memory_whose_hash_cannot_be_asked_for_is_copied() {
    // The first launch of the kernel is its trial.
    let fault = "[[fault]]\nkind = 'launch_refused'\nkernel = 'acb_hash128'\nat = 2\ntimes = 0";
    let mut play = start_in(Lab::on_software_gpu(fault), "a48 w0:1 . c0:1");
    play.first_turn(48 * MIB);
    play.swap_out(1, 48 * MIB);
    play.turn(2, 48 * MIB);
    play.client.end().succeeded().prints("wrong=0");
}

/// Frameworks allocate most of a GPU in advance. What holds nothing but zeros needs neither the link nor a place on the host; whether
/// it does is asked of its content, so it does not matter who has written it.
#[test]
fn memory_that_is_all_zeros_is_not_copied() {
    for compare in [false, true] {
        let words = "a16 a48 w0:1 . c0:1 c1:0 w1:2 . c0:1 c1:2 w1:0 . c0:1 c1:0 .";
        let welcome = Welcome { compare, ..paged_welcome() };
        let mut play = start_with(Lab::on_software_gpu(""), words, welcome);
        play.claim(16 * MIB);
        play.claim(48 * MIB);
        play.peer.say(Say::Arena(Arena { bytes: 64 * MIB }));
        let mut read = vec![play.turn(1, 64 * MIB).bytes_in];
        let scratch = if compare { 4 * 16 * MIB } else { 0 };
        play.peer.wait_for_moves(|moves| moves.arena == 64 * MIB + scratch);
        for epoch in 1..4 {
            wait_until("its work is done", || play.lab.count("paused") as u64 == epoch);
            play.swap_out(epoch, 64 * MIB);
            read.push(play.turn(epoch + 1, 64 * MIB).bytes_in);
        }
        play.page_out(4, 64 * MIB);
        let moved = |moves: &MemoryReport| moves.paged_out + moves.clean;
        let moves = play.peer.wait_for_moves(|moves| moved(moves) == 4 * 64 * MIB);
        // The first was used all the time; the second in the second turn alone.
        let (all, used) = (64 * MIB, 16 * MIB);
        match compare {
            false => {
                assert_eq!(read, [0, used, all, used]);
                assert_eq!(moves.paged_out, used + 48 * MIB);
            }
            // What is compared must have been copied.
            true => assert_eq!(read, [0, all, all, all]),
        }
        play.end().prints_times(6, "wrong=0");
    }
}
