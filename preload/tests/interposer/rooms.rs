//! Device memory: room before memory, waiting, refusal, return.

use crate::assigner::{Assigner, Peer, start, start_in, start_with, welcome};
use crate::setup::{Client, Lab};
use acb_wire::v1::assigner_message::Kind as Say;
use acb_wire::v1::client_message::Kind as Hear;
use acb_wire::v1::{RoomKind, RoomReply, RoomVerdict, Welcome};

const MIB: u64 = 1 << 20;

#[test]
fn small_allocations_share_a_slab_and_large_ones_ask_for_what_they_need() {
    let (lab, _assigner, client, mut peer) = start("allocate 1 1 1 100 ?");
    let slab = peer.room_request();
    assert_eq!((slab.device, slab.bytes, slab.kind()), (0, 32 * MIB, RoomKind::Memory));
    peer.room_reply(slab.seq, RoomVerdict::Granted, "");
    let large = peer.room_request();
    assert_eq!(large.bytes, (100 + 6 - 32) * MIB);
    peer.room_reply(large.seq, RoomVerdict::Granted, "");
    let free = 16 * 1024 - 106;
    client.end().succeeded().prints(&format!("info={free} 16384"));
    assert_eq!(lab.count("cuMemAlloc"), 4);
}

#[test]
fn freed_memory_is_given_back() {
    let (_lab, _assigner, client, mut peer) = start("allocate 1000 -");
    let request = peer.room_request();
    assert_eq!(request.bytes, 1000 * MIB);
    peer.room_reply(request.seq, RoomVerdict::Granted, "");
    match peer.hear() {
        Hear::RoomReturn(back) => assert_eq!((back.device, back.bytes), (0, 1000 * MIB)),
        other => panic!("{other:?}"),
    }
    client.end().succeeded().prints("free=0");
}

#[test]
fn what_does_not_fit_waits_with_one_message() {
    let (lab, _assigner, client, mut peer) = start("allocate 8192");
    let request = peer.room_request();
    for _ in 0..2 {
        peer.room_reply(request.seq, RoomVerdict::Waiting, "2.0 GiB missing; held by 77 (python3)");
    }
    peer.hears_nothing();
    assert_eq!(lab.count("cuMemAlloc"), 0);
    peer.room_reply(request.seq, RoomVerdict::Granted, "");
    let ended = client
        .end()
        .succeeded()
        .prints("allocate=0")
        .says("waiting for 8.0 GiB on GPU 0: 2.0 GiB missing; held by 77")
        .says("there is room for 8.0 GiB on GPU 0 now");
    assert_eq!(ended.stderr().matches("waiting for").count(), 1);
}

#[test]
fn what_never_fits_is_out_of_memory_with_a_reason() {
    let (lab, _assigner, client, mut peer) = start("allocate 20000 1");
    let request = peer.room_request();
    peer.room_reply(request.seq, RoomVerdict::Denied, "20000 MiB exceed the GPU's 16384 MiB");
    // A slab that is refused is not the end: the exact size is tried.
    let slab = peer.room_request();
    assert_eq!(slab.bytes, 32 * MIB);
    peer.room_reply(slab.seq, RoomVerdict::Denied, "full");
    let exact = peer.room_request();
    assert_eq!(exact.bytes, 2 * MIB);
    peer.room_reply(exact.seq, RoomVerdict::Granted, "");
    client
        .end()
        .succeeded()
        .prints("allocate=2")
        .prints("allocate=0")
        .says("exceed the GPU's 16384 MiB");
    assert_eq!(lab.count("cuMemAlloc"), 1);
}

#[test]
fn room_for_memory_that_the_driver_refuses_goes_back() {
    let (_lab, _assigner, client, mut peer) =
        start_in(Lab::new().with("DUMMY_ALLOC", "2"), "allocate 500");
    refused_by_the_driver(&mut peer);
    // All but what the client keeps in hand.
    let mut back = 0;
    while back < GROWTH + 468 * MIB {
        match peer.hear() {
            Hear::RoomReturn(some) => back += some.bytes,
            other => panic!("RoomReturn expected: {other:?}"),
        }
    }
    client.end().succeeded().prints("allocate=2").says("end programs outside of slurm-acb");
}

/// A sixteenth of the GPU: nobody knows what the driver has taken for itself.
const GROWTH: u64 = 1024 * MIB;

/// There is room for an allocation, but no memory: others are asked to make room for what the driver has taken itself.
fn refused_by_the_driver(peer: &mut Peer) {
    let request = peer.room_request();
    assert_eq!(request.bytes, 500 * MIB);
    peer.room_reply(request.seq, RoomVerdict::Granted, "");
    peer.grant(1);
    let size = peer.room_request();
    assert_eq!(size.kind(), RoomKind::ProcessSize);
    peer.room_reply(size.seq, RoomVerdict::Denied, "nobody can tell");
    let more = peer.room_request();
    assert_eq!((more.bytes, more.kind()), (GROWTH, RoomKind::Memory));
    peer.room_reply(more.seq, RoomVerdict::Granted, "");
}

#[test]
fn an_allocation_finds_room_where_the_driver_has_grown() {
    let lab = Lab::new().with("DUMMY_ALLOC", "2").with("DUMMY_ALLOC_ONCE", "1");
    let (_lab, _assigner, client, mut peer) =
        start_in(lab.with("ACB_LOG", "info"), "allocate 500 .");
    refused_by_the_driver(&mut peer);
    let size = peer.room_request();
    assert_eq!(size.kind(), RoomKind::ProcessSize);
    peer.room_reply(size.seq, RoomVerdict::Denied, "nobody can tell");
    client.end_of_input().succeeded().prints("allocate=0").says("others made room");
}

#[test]
fn mapped_memory_is_kept_until_it_is_unmapped() {
    let (_lab, _assigner, mut client, mut peer) = start("physical");
    let request = peer.room_request();
    assert_eq!(request.bytes, 64 * MIB);
    peer.room_reply(request.seq, RoomVerdict::Granted, "");
    peer.hears_nothing();
    client.tell("unmap");
    assert!(matches!(peer.hear(), Hear::RoomReturn(back) if back.bytes == 64 * MIB));
    client.tell("on");
    client.end().succeeded();
}

/// A program that makes its first contexts in this way. Room for 300 MiB is asked for, and the assigner then says that the context takes
/// so many MiB in truth.
fn making_contexts(lab: Lab, scenario: &str, measured: u64) -> (Lab, Assigner, Client, Peer) {
    let terms = Welcome { context_bytes: 300 * MIB, idle_us: 200_000, ..welcome() };
    let (lab, assigner, client, mut peer) = start_with(lab, scenario, terms);
    let request = peer.room_request();
    assert_eq!((request.bytes, request.kind()), (300 * MIB, RoomKind::Context));
    peer.room_reply(request.seq, RoomVerdict::Granted, "");
    measure(&mut peer, RoomKind::ContextSize, measured);
    (lab, assigner, client, peer)
}

#[test]
fn a_context_has_room_of_its_own() {
    let (_lab, _assigner, client, _peer) = making_contexts(Lab::new(), "allocate ?", 0);
    client.end().succeeded().prints(&format!("info={} 16384", 16 * 1024 - 300));
}

#[test]
fn what_a_context_does_not_take_goes_back() {
    let (_lab, _assigner, client, mut peer) = making_contexts(Lab::new(), "allocate ?", 180);
    assert!(matches!(peer.hear(), Hear::RoomReturn(back) if back.bytes == 120 * MIB));
    client.end().succeeded().prints(&format!("info={} 16384", 16 * 1024 - 180));
}

#[test]
fn what_a_context_takes_beyond_what_was_known_is_asked_for() {
    for (verdict, counted) in [(RoomVerdict::Granted, 420), (RoomVerdict::Denied, 300)] {
        let (_lab, _assigner, client, mut peer) = making_contexts(Lab::new(), "allocate ?", 420);
        let more = peer.room_request();
        assert_eq!((more.bytes, more.kind()), (120 * MIB, RoomKind::Taken), "it is there already");
        peer.room_reply(more.seq, verdict, "others have it");
        let info = format!("info={} 16384", 16 * 1024 - counted);
        client.end().succeeded().prints(&info);
    }
}

/// The client asks what there is of it, and hears so many MiB.
fn measure(peer: &mut Peer, kind: RoomKind, mib: u64) {
    let question = peer.room_request();
    assert_eq!((question.bytes, question.kind()), (0, kind));
    peer.say(Say::RoomReply(RoomReply {
        seq: question.seq,
        verdict: RoomVerdict::Granted.into(),
        bytes: mib * MIB,
        ..RoomReply::default()
    }));
}

fn returned(peer: &mut Peer, bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        match peer.hear() {
            Hear::RoomReturn(back) => left -= back.bytes,
            Hear::Release(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_green_context_counts_with_the_primary_context_that_it_keeps() {
    let (lab, _assigner, mut client, mut peer) = making_contexts(Lab::new(), "green", 300);
    peer.grant(1);
    measure(&mut peer, RoomKind::ProcessSize, 300);
    measure(&mut peer, RoomKind::ProcessSize, 308);
    let own = peer.room_request();
    assert_eq!((own.bytes, own.kind()), (8 * MIB, RoomKind::Memory));
    peer.room_reply(own.seq, RoomVerdict::Granted, "");
    peer.wait_for_moves(|report| {
        let kinds = report.fixed.iter();
        kinds.filter(|kind| kind.kind == "contexts").map(|kind| kind.bytes).sum::<u64>()
            == 308 * MIB
    });
    client.tell("on");
    // Memory under it is the primary context's.
    let memory = peer.room_request();
    peer.room_reply(memory.seq, RoomVerdict::Granted, "");
    peer.want(1);
    peer.release();
    client.tell("on");
    // All that there was goes with the last of them.
    returned(&mut peer, 308 * MIB + memory.bytes);
    client.tell("on");
    client.end().succeeded().prints("green=0").prints("allocate=0").prints("gone=0");
    assert_eq!(lab.count("cuGreenCtxCreate 5 1"), 1);
    assert_eq!(lab.count("FAULT"), 0);
}

#[test]
fn a_green_context_that_the_driver_refuses_takes_no_room() {
    let lab = Lab::new().with("DUMMY_GREEN", "801");
    let (_lab, _assigner, mut client, mut peer) = making_contexts(lab, "green", 300);
    peer.grant(1);
    measure(&mut peer, RoomKind::ProcessSize, 300);
    returned(&mut peer, 300 * MIB);
    client.tell("on");
    client.end().succeeded().prints("green=801");
}

#[test]
fn a_context_for_graphics_has_room_like_others() {
    let (lab, _assigner, mut client, _peer) = making_contexts(Lab::new(), "graphics", 300);
    client.tell("on");
    client.end().succeeded().prints("graphics=0");
    assert_eq!(lab.count("cuGLCtxCreate 3"), 1);
}

#[test]
fn a_question_that_a_lost_assigner_owes_is_asked_again() {
    let (_lab, assigner, client, mut peer) = start("allocate 1000 1000");
    let first = peer.room_request();
    peer.room_reply(first.seq, RoomVerdict::Granted, "");
    let second = peer.room_request();
    peer.room_reply(second.seq, RoomVerdict::Waiting, "held by others");
    drop(peer);
    let mut peer = assigner.accept();
    assert_eq!(peer.hello().held.expect("held is stated").room, [1000 * MIB]);
    peer.say(Say::Welcome(welcome()));
    let again = peer.room_request();
    assert_eq!((again.seq, again.bytes), (second.seq, second.bytes));
    peer.room_reply(again.seq, RoomVerdict::Granted, "");
    client.end().succeeded();
}

#[test]
fn a_pool_on_the_host_takes_no_room_of_a_gpu() {
    // CU_MEM_LOCATION_TYPE_DEVICE, …_HOST
    for (place, takes) in [(1, true), (2, false)] {
        let (lab, _assigner, mut client, mut peer) = start(&format!("pool {place}"));
        if takes {
            let request = peer.room_request();
            assert_eq!((request.device, request.bytes), (0, 100 * MIB));
            peer.room_reply(request.seq, RoomVerdict::Granted, "");
        } else {
            peer.hears_nothing();
        }
        client.tell("on");
        client.end().succeeded().prints("allocate=0");
        assert_eq!(lab.count("cuMemAllocFromPoolAsync"), 1);
    }
}
