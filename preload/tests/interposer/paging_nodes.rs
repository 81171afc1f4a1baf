//! Host memory for what is moved lies on the NUMA node of the GPU, where that can be had.

use crate::play::{MIB, Play, gpu, paged_welcome, start_on};
use crate::setup::Lab;
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::{Arena, BoundGpu};

/// A program whose GPU is at a node (plus one), with 48 MiB of arena in three regions.
fn at_node(node: u32) -> Play {
    let gpu = BoundGpu { numa_node: node, ..gpu() };
    let mut play =
        start_on(Lab::on_software_gpu(""), "a4 . w0:1 c0:1 .", paged_welcome(), vec![gpu]);
    play.claim(4 * MIB);
    play.peer.say(Say::Arena(Arena { bytes: 48 * MIB }));
    play.peer.wait_for_moves(|moves| moves.arena == 48 * MIB);
    play
}

/// Mappings of the program that ask for a node.
fn asking_for(play: &Play, node: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/numa_maps", play.client.pid()));
    let maps = maps.expect("the kernel knows NUMA nodes");
    maps.lines().filter(|line| line.contains(&format!(" prefer:{node} "))).count()
}

fn end(mut play: Play) -> crate::setup::Ended {
    play.client.tell("on");
    play.turn(1, 4 * MIB);
    play.end().prints("read=0 wrong=0")
}

#[test]
fn a_region_asks_for_the_gpus_node() {
    let play = at_node(1);
    assert!(asking_for(&play, 0) > 0);
    end(play);
    let play = at_node(0);
    assert_eq!(asking_for(&play, 0), 0, "where no node is known");
    end(play);
}

#[test]
fn a_node_that_cannot_be_had_is_told_once() {
    let play = at_node(1000);
    let ended = end(play);
    let told = ended.stderr().matches("mbind of host memory to NUMA node 999 failed").count();
    assert_eq!(told, 1, "{}", ended.text());
}
