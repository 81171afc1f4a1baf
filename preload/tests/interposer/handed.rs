//! Memory that the driver hands to others, and so stays; and what is only looked at, and moves on.

use crate::play::{MIB, start_in};
use crate::setup::Lab;

/// Memory moves until a word hands it on, and not afterwards.
fn stays(word: &str, why: &'static str, prints: &[&str]) {
    let words = format!("m16 a8 w0:1 w1:2 . c0:1 c1:2 {word} . c0:1 c1:2 .");
    let mut play = start_in(Lab::on_software_gpu(""), &words);
    play.claim(16 * MIB);
    play.claim(8 * MIB);
    play.turn(1, 24 * MIB);
    play.swap_out(1, 24 * MIB);
    play.turn(2, 24 * MIB);
    play.take_back(2);
    play.keeps(24 * MIB, 16 * MIB, why);
    play.shows(&[(why, 16 * MIB)]);
    play.client.tell("on");
    play.turn(3, 8 * MIB);
    let mut ended = play.end();
    for text in prints {
        ended = ended.prints(text);
    }
    ended.says("16.0 MiB of memory stays on GPU 0 from now on").prints_times(4, "wrong=0");
}

#[test]
fn memory_in_a_multicast_object_stays() {
    stays("B0", "multicast", &["bound=0"]);
}

#[test]
fn memory_that_is_bound_by_its_address_stays() {
    stays("b0", "multicast", &["bound=0"]);
}

/// What a network card is told of is one piece of physical memory, and stays where it is.
#[test]
fn all_memory_of_a_program_with_network_cards_is_one_piece_each_and_stays() {
    let lab = Lab::on_software_gpu("").with_library("libibverbs.so.1");
    let mut play = start_in(lab, "a40 w0:1 . J0 c0:1 .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    play.take_back(1);
    play.keeps(40 * MIB, 40 * MIB, "rdma");
    play.shows(&[("rdma", 40 * MIB)]);
    play.client.tell("on");
    play.turn(2, 0);
    play.client.tell("on");
    // A descriptor is of one piece alone.
    let ended = play.client.end().succeeded().prints("descriptor=0").prints("same=true");
    let ended = ended.prints("read=0 wrong=0").says("NCCL_IB_DISABLE=1");
    assert_eq!(ended.stderr().matches("as libibverbs is loaded").count(), 1, "{}", ended.text());
}

/// So say libraries that have it reached by others than the GPU.
#[test]
fn memory_of_which_copies_are_to_be_waited_for_stays() {
    let mut play = start_in(Lab::on_software_gpu(""), "a40 w0:1 . y0:1 w0:2 . c0:2 .");
    play.claim(40 * MIB);
    play.turn(1, 40 * MIB);
    // It moves until then, and is brought to the GPU for the call.
    play.swap_out(1, 40 * MIB);
    play.turn(2, 40 * MIB);
    play.take_back(2);
    play.keeps(40 * MIB, 40 * MIB, "rdma");
    play.client.tell("on");
    play.turn(3, 0);
    play.end().prints("read=0 wrong=0");
}

/// By name and by address; where the driver has no endpoints, the call fails as it does there.
#[test]
fn memory_at_a_logical_endpoint_stays() {
    stays("l0", "logical endpoint", &["bound="]);
    stays("Y0", "logical endpoint", &["bound="]);
}

#[test]
fn memory_behind_a_sparse_array_stays() {
    stays("S0:1", "sparse arrays", &["mapped=0", "same=true"]);
}

#[test]
fn memory_with_a_descriptor_for_other_devices_stays() {
    stays("J0", "dma-buf", &["descriptor=0", "same=true"]);
}

#[test]
fn a_texture_waits_for_its_memory_which_moves_on() {
    // Of linear memory, and of rows.
    for word in ["O0", "V0"] {
        let words = format!("a8 w0:1 . {word} . c0:1 .");
        let mut play = start_in(Lab::on_software_gpu(""), &words);
        play.claim(8 * MIB);
        play.turn(1, 8 * MIB);
        play.swap_out(1, 8 * MIB);
        // The driver looks at the memory: it would be refused while that is absent.
        play.turn(2, 8 * MIB);
        play.swap_out(2, 8 * MIB);
        play.turn(3, 8 * MIB);
        play.end().prints("texture=0").prints("read=0 wrong=0");
    }
}

#[test]
fn memory_of_another_library_is_not_counted_and_waits_for_its_turn() {
    let mut play = start_in(Lab::on_software_gpu(""), "E8 a4 . c0:1 w0:2 c0:2 f0 .");
    // Nothing is asked for but the program's own.
    play.claim(4 * MIB);
    play.client.tell("on");
    play.turn(1, 4 * MIB);
    play.peer.hears_nothing();
    play.shows(&[]);
    let ended = play.end().prints("imported=0").prints("mapped=0");
    ended.prints("destroyed=0").prints("free=0").prints_times(2, "read=0 wrong=0");
}

#[test]
fn compressed_memory_counts_and_is_not_moved() {
    let mut play = start_in(Lab::on_software_gpu(""), "z16 w0:1 . c0:1 x0 .");
    play.room(16 * MIB);
    play.turn(1, 0);
    play.shows(&[("compressed", 16 * MIB)]);
    play.client.tell("on");
    let back = play.returned();
    assert_eq!(back.bytes, 16 * MIB);
    play.end().prints("read=0 wrong=0").prints("released=0");
}

#[test]
fn memory_for_network_cards_stays_where_their_library_is() {
    let lab = Lab::on_software_gpu("").with_library("libibverbs.so.1");
    let mut play = start_in(lab, "h16 w0:1 c0:1 .");
    play.room(16 * MIB);
    play.peer.grant(1);
    play.peer.hears_nothing();
    play.shows(&[("exported", 16 * MIB)]);
    play.end().prints("read=0 wrong=0");
}
