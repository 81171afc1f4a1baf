//! What happens before what, and when it is seen.
#![allow(unsafe_code)] // a function for the driver to call

use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{any_of, open, same, why};
use crate::gpu::code;

/// Long enough for the host to hand in more meanwhile.
const WHILE: u64 = 200_000_000;
const NON_BLOCKING: u32 = 1;

pub(super) fn copies_are_seen_when_they_are_done(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(a, &[42]).map_err(why("write"))?;
    pinned.set(0, 7);
    let held = gpu.hold(stream).map_err(why("hold"))?;
    same("copy", gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), a, 8, stream), 0)?;
    same("not yet", pinned.get(0), 7)?;
    held.let_go();
    gpu.wait(stream).map_err(why("wait"))?;
    same("now", pinned.get(0), 42)
}

pub(super) fn a_stream_keeps_its_order(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(a, &[1]).map_err(why("write"))?;
    let mut wanted = 1_u64;
    for salt in 0..500 {
        gpu.launch(stream, "acb_step", &[a, 1, salt, 0]).map_err(why("launch"))?;
        wanted = wanted.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt);
    }
    gpu.wait(stream).map_err(why("wait"))?;
    same("in order", gpu.read(a, 1).map_err(why("read"))?, vec![wanted])
}

pub(super) fn streams_know_whether_they_are_done(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let event = gpu.event().map_err(why("event"))?;
    same("empty", gpu.query(stream), Ok(()))?;
    same("not recorded", gpu.driver.cuEventQuery(event), 0)?;
    let held = gpu.hold(stream).map_err(why("hold"))?;
    gpu.record(event, stream).map_err(why("record"))?;
    same("working", gpu.query(stream), Err(code::NOT_READY))?;
    same("event", gpu.driver.cuEventQuery(event), code::NOT_READY)?;
    held.let_go();
    same("wait", gpu.driver.cuEventSynchronize(event), 0)?;
    same("done", gpu.query(stream), Ok(()))?;
    same("event", gpu.driver.cuEventQuery(event), 0)
}

pub(super) fn other_streams_wait_for_events(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let first = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let second = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let event = gpu.event().map_err(why("event"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(a, &[1]).map_err(why("write"))?;
    gpu.launch(first, "acb_spin", &[WHILE]).map_err(why("launch"))?;
    gpu.launch(first, "acb_fill", &[a, 1, 77]).map_err(why("launch"))?;
    gpu.record(event, first).map_err(why("record"))?;
    same("wait", gpu.driver.cuStreamWaitEvent(second, event, 0), 0)?;
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    same("copy", gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), a, 8, second), 0)?;
    gpu.wait(second).map_err(why("wait"))?;
    same("after the event", pinned.get(0), super::splitmix64(77))
}

pub(super) fn the_default_stream_waits_for_blocking_ones(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(0).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(a, &[1]).map_err(why("write"))?;
    gpu.launch(stream, "acb_spin", &[WHILE]).map_err(why("launch"))?;
    gpu.launch(stream, "acb_fill", &[a, 1, 5]).map_err(why("launch"))?;
    // On the default stream: after the other one's work.
    let words = gpu.read(a, 1).map_err(why("read"))?;
    same("the default stream waited", words, vec![super::splitmix64(5)])?;
    let held = gpu.hold(0).map_err(why("hold"))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    same("the other one waits too", gpu.query(stream), Err(code::NOT_READY))?;
    held.let_go();
    gpu.synchronize().map_err(why("synchronize"))
}

pub(super) fn other_streams_do_not_wait(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let slow = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let quick = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    pinned.set(0, 3);
    let held = gpu.hold(slow).map_err(why("hold"))?;
    same("copy", gpu.driver.cuMemcpyHtoDAsync_v2(a, pinned.pointer(), 8, quick), 0)?;
    gpu.wait(quick).map_err(why("wait"))?;
    same("the slow one still works", gpu.query(slow), Err(code::NOT_READY))?;
    held.let_go();
    gpu.wait(slow).map_err(why("wait"))
}

extern "C" fn note(to: *mut c_void) {
    // SAFETY: the case passes an atomic that outlives the stream's work.
    let steps = unsafe { &*to.cast::<AtomicU64>() };
    steps.fetch_add(1, Ordering::SeqCst);
}

pub(super) fn functions_of_the_program_run_in_order(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let steps = AtomicU64::new(0);
    let data = (&raw const steps).cast_mut().cast::<c_void>();
    let held = gpu.hold(stream).map_err(why("hold"))?;
    same("hand in", gpu.driver.cuLaunchHostFunc(stream, note, data), 0)?;
    same("not yet", steps.load(Ordering::SeqCst), 0)?;
    for _ in 0..9 {
        same("hand in", gpu.driver.cuLaunchHostFunc(stream, note, data), 0)?;
    }
    held.let_go();
    gpu.wait(stream).map_err(why("wait"))?;
    same("all of them", steps.load(Ordering::SeqCst), 10)
}

pub(super) fn events_measure_time(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let events: Vec<usize> =
        (0..3).map(|_| gpu.event()).collect::<Result<_, _>>().map_err(why("event"))?;
    // So that all is there before the first one runs.
    let held = gpu.hold(stream).map_err(why("hold"))?;
    for &event in &events[..2] {
        gpu.record(event, stream).map_err(why("record"))?;
        gpu.launch(stream, "acb_spin", &[20_000_000]).map_err(why("launch"))?;
    }
    gpu.record(events[2], stream).map_err(why("record"))?;
    held.let_go();
    gpu.wait(stream).map_err(why("wait"))?;
    for pair in events.windows(2) {
        let time = gpu.elapsed(pair[0], pair[1]).map_err(why("elapsed"))?;
        same("20 ms, as the GPU counts", (19.9..25.0).contains(&time), true)?;
    }
    Ok(())
}

pub(super) fn a_full_queue_loses_nothing(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(a, &[0]).map_err(why("write"))?;
    gpu.launch(stream, "acb_spin", &[WHILE / 4]).map_err(why("launch"))?;
    let mut wanted = 0_u64;
    for _ in 0..5000 {
        gpu.launch(stream, "acb_step", &[a, 1, 1, 1000]).map_err(why("launch"))?;
        wanted = wanted.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    }
    gpu.wait(stream).map_err(why("wait"))?;
    same("every launch counted", gpu.read(a, 1).map_err(why("read"))?, vec![wanted])
}

pub(super) fn streams_write_values_and_wait_for_them(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let [first, second] = [gpu.stream(NON_BLOCKING), gpu.stream(NON_BLOCKING)];
    let (first, second) = (first.map_err(why("stream"))?, second.map_err(why("stream"))?);
    let memory = gpu.alloc(4096).map_err(why("allocate"))?;
    gpu.write(memory, &[0; 4]).map_err(why("write"))?;
    // The one waits for what the other writes.
    same("wait", gpu.driver.cuStreamWaitValue32_v2(first, memory, 5, 1), 0)?;
    gpu.launch(first, "acb_fill", &[memory + 8, 1, 7]).map_err(why("launch"))?;
    same("it waits", gpu.query(first), Err(code::NOT_READY))?;
    same("write", gpu.driver.cuStreamWriteValue32_v2(second, memory, 5, 0), 0)?;
    same("come", gpu.driver.cuStreamSynchronize(first), 0)?;
    let words = gpu.read(memory, 2).map_err(why("read"))?;
    same("both", [words[0], words[1]], [5, super::splitmix64(7)])?;
    // At once: 64 bits are written, then waited for as a number that is not below.
    let operations: [[u64; 6]; 2] =
        [[5, memory + 16, 1 << 40, 0, 0, 0], [4, memory + 16, 9, 0, 0, 0]];
    let list = operations.as_ptr().cast_mut().cast();
    same("a batch", gpu.driver.cuStreamBatchMemOp_v2(first, 2, list, 0), 0)?;
    same("done", gpu.driver.cuStreamSynchronize(first), 0)?;
    same("64 bits", gpu.read(memory + 16, 1).map_err(why("read"))?, vec![1 << 40])?;
    any_of(
        "an odd address",
        Err(gpu.driver.cuStreamWriteValue32_v2(first, memory + 2, 1, 0)),
        &[code::INVALID_VALUE],
    )
}
