//! Stream capture: what is recorded, what is forbidden meanwhile, and what
//! becomes of a capture that was spoiled.

use std::path::Path;

use super::{any_of, open, same, why};
use crate::driver::Handle;
use crate::gpu::{Gpu, code};

const NON_BLOCKING: u32 = 1;
const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;
const ACTIVE: u32 = 1;
const INVALIDATED: u32 = 2;

/// What `acb_step` makes of a word.
fn step(word: u64, salt: u64) -> u64 {
    word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt)
}

fn nodes(gpu: &Gpu, graph: Handle) -> Result<usize, String> {
    let mut count = 0;
    let none = std::ptr::null_mut();
    same("nodes", gpu.driver.cuGraphGetNodes(graph, none, &raw mut count), 0)?;
    Ok(count)
}

pub(super) fn what_is_captured_does_not_run(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(a, &[1]).map_err(why("write"))?;
    same("before", gpu.captures(stream), Ok(0))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    same("meanwhile", gpu.captures(stream), Ok(ACTIVE))?;
    let busy = gpu.begin(stream, RELAXED);
    any_of("twice", busy, &[code::INVALID_VALUE, 401, code::CAPTURE_UNSUPPORTED])?;
    gpu.launch(stream, "acb_step", &[a, 1, 5, 0]).map_err(why("launch"))?;
    gpu.launch(stream, "acb_step", &[a, 1, 7, 0]).map_err(why("launch"))?;
    let graph = gpu.end(stream).map_err(why("end"))?;
    same("after", gpu.captures(stream), Ok(0))?;
    same("not run", gpu.read(a, 1), Ok(vec![1]))?;
    same("two nodes", nodes(&gpu, graph)?, 2)?;
    let executable = gpu.instantiate(graph, 0).map_err(why("instantiate"))?;
    same("not run yet", gpu.read(a, 1), Ok(vec![1]))?;
    let mut wanted = 1;
    for _ in 0..2 {
        gpu.replay(executable, stream).map_err(why("run"))?;
        wanted = step(step(wanted, 5), 7);
    }
    gpu.wait(stream).map_err(why("wait"))?;
    same("run twice", gpu.read(a, 1), Ok(vec![wanted]))
}

pub(super) fn events_lead_from_stream_to_stream(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let first = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let second = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (out, back) = (gpu.event().map_err(why("event"))?, gpu.event().map_err(why("event"))?);
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    gpu.begin(first, THREAD_LOCAL).map_err(why("begin"))?;
    gpu.launch(first, "acb_spin", &[5_000_000]).map_err(why("launch"))?;
    gpu.launch(first, "acb_fill", &[a, 1, 11]).map_err(why("launch"))?;
    gpu.record(out, first).map_err(why("record"))?;
    same("not part of it", gpu.captures(second), Ok(0))?;
    gpu.wait_event(second, out).map_err(why("wait for the event"))?;
    same("part of it", gpu.captures(second), Ok(ACTIVE))?;
    gpu.launch(second, "acb_spin", &[5_000_000]).map_err(why("launch"))?;
    gpu.launch(second, "acb_step", &[a, 1, 3, 0]).map_err(why("launch"))?;
    gpu.record(back, second).map_err(why("record"))?;
    gpu.wait_event(first, back).map_err(why("wait for the event"))?;
    let copied = gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), a, 8, first);
    same("copy", copied, 0)?;
    let graph = gpu.end(first).map_err(why("end"))?;
    same("left", gpu.captures(second), Ok(0))?;
    same("five nodes", nodes(&gpu, graph)?, 5)?;
    let executable = gpu.instantiate(graph, 0).map_err(why("instantiate"))?;
    for _ in 0..3 {
        pinned.set(0, 0);
        gpu.replay(executable, second).map_err(why("run"))?;
        gpu.wait(second).map_err(why("wait"))?;
        same("in order", pinned.get(0), step(super::splitmix64(11), 3))?;
    }
    Ok(())
}

pub(super) fn what_is_not_joined_makes_no_graph(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let first = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let second = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let out = gpu.event().map_err(why("event"))?;
    gpu.begin(first, RELAXED).map_err(why("begin"))?;
    gpu.launch(first, "acb_nop", &[]).map_err(why("launch"))?;
    gpu.record(out, first).map_err(why("record"))?;
    gpu.wait_event(second, out).map_err(why("wait for the event"))?;
    gpu.launch(second, "acb_nop", &[]).map_err(why("launch"))?;
    same("end", gpu.end(first), Err(code::CAPTURE_UNJOINED))?;
    same("over", (gpu.captures(first), gpu.captures(second)), (Ok(0), Ok(0)))
}

pub(super) fn a_capture_ends_where_it_began(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let first = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let second = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let out = gpu.event().map_err(why("event"))?;
    gpu.begin(first, RELAXED).map_err(why("begin"))?;
    gpu.launch(first, "acb_nop", &[]).map_err(why("launch"))?;
    gpu.record(out, first).map_err(why("record"))?;
    gpu.wait_event(second, out).map_err(why("wait for the event"))?;
    same("in the other stream", gpu.end(second), Err(code::CAPTURE_UNMATCHED))?;
    // Whatever became of it, the first stream can be used again afterwards.
    let _ = gpu.end(first);
    gpu.begin(first, GLOBAL).map_err(why("begin"))?;
    let elsewhere = std::thread::scope(|scope| {
        let ended = scope.spawn(|| {
            gpu.driver.cuCtxSetCurrent(gpu.context);
            gpu.end(first)
        });
        ended.join().map_err(|_| "the thread failed".to_owned())
    })?;
    same("in another thread", elsewhere, Err(code::CAPTURE_WRONG_THREAD))?;
    let _ = gpu.end(first);
    gpu.launch(first, "acb_nop", &[]).map_err(why("goes on"))?;
    gpu.wait(first).map_err(why("wait"))
}

pub(super) fn waiting_spoils_a_capture(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    for spoil in [Gpu::wait, Gpu::query] {
        gpu.begin(stream, RELAXED).map_err(why("begin"))?;
        gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
        same("refused", spoil(&gpu, stream), Err(code::CAPTURE_UNSUPPORTED))?;
        same("spoiled", gpu.captures(stream), Ok(INVALIDATED))?;
        let launched = gpu.launch(stream, "acb_nop", &[]);
        same("no more", launched, Err(code::CAPTURE_INVALIDATED))?;
        same("no graph", gpu.end(stream), Err(code::CAPTURE_INVALIDATED))?;
        gpu.launch(stream, "acb_nop", &[]).map_err(why("goes on"))?;
        gpu.wait(stream).map_err(why("wait"))?;
    }
    Ok(())
}

/// Allocates in another thread, in a capture mode of its own.
fn allocate_elsewhere(gpu: &Gpu, mode: u32) -> Result<Result<(), u32>, String> {
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            let mut mode = mode;
            gpu.driver.cuCtxSetCurrent(gpu.context);
            gpu.driver.cuThreadExchangeStreamCaptureMode(&raw mut mode);
            gpu.alloc(1 << 20).map(drop)
        });
        tried.join().map_err(|_| "the thread failed".to_owned())
    })
}

pub(super) fn other_threads_may_not_allocate_meanwhile(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    for elsewhere in [false, true] {
        gpu.begin(stream, GLOBAL).map_err(why("begin"))?;
        gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
        same("in relaxed mode", allocate_elsewhere(&gpu, RELAXED)?, Ok(()))?;
        same("for itself", allocate_elsewhere(&gpu, THREAD_LOCAL)?, Ok(()))?;
        same("not spoiled", gpu.captures(stream), Ok(ACTIVE))?;
        let tried = if elsewhere {
            allocate_elsewhere(&gpu, GLOBAL)?
        } else {
            gpu.alloc(1 << 20).map(drop)
        };
        same("refused", tried, Err(code::CAPTURE_UNSUPPORTED))?;
        same("spoiled", gpu.end(stream), Err(code::CAPTURE_INVALIDATED))?;
    }
    gpu.alloc(1 << 20).map(drop).map_err(why("allowed again"))
}

pub(super) fn a_capture_of_one_thread_leaves_the_others_alone(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    gpu.begin(stream, THREAD_LOCAL).map_err(why("begin"))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    same("in another thread", allocate_elsewhere(&gpu, GLOBAL)?, Ok(()))?;
    same("not spoiled", gpu.captures(stream), Ok(ACTIVE))?;
    let own = gpu.alloc(1 << 20).map(drop);
    same("in this one", own, Err(code::CAPTURE_UNSUPPORTED))?;
    same("spoiled", gpu.end(stream), Err(code::CAPTURE_INVALIDATED))
}

pub(super) fn a_relaxed_capture_forbids_nothing(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    gpu.alloc(1 << 20).map_err(why("allocate"))?;
    same("in another thread", allocate_elsewhere(&gpu, GLOBAL)?, Ok(()))?;
    gpu.end(stream).map(drop).map_err(why("end"))?;
    // A thread may lift its own ban.
    let mut mode = RELAXED;
    gpu.begin(stream, GLOBAL).map_err(why("begin"))?;
    same("lift", gpu.driver.cuThreadExchangeStreamCaptureMode(&raw mut mode), 0)?;
    same("it was", mode, GLOBAL)?;
    gpu.alloc(1 << 20).map_err(why("allocate"))?;
    same("back", gpu.driver.cuThreadExchangeStreamCaptureMode(&raw mut mode), 0)?;
    same("it was", mode, RELAXED)?;
    gpu.end(stream).map(drop).map_err(why("end"))
}

pub(super) fn the_legacy_stream_cannot_wait_for_a_capture(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(0).map_err(why("stream"))?;
    gpu.begin(0, RELAXED).map_or(Ok(()), |()| Err("the legacy stream captures".to_owned()))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    same("asked", gpu.captures(0), Err(code::CAPTURE_IMPLICIT))?;
    same("that does no harm", gpu.captures(stream), Ok(ACTIVE))?;
    same("used", gpu.launch(0, "acb_nop", &[]), Err(code::CAPTURE_IMPLICIT))?;
    same("spoiled", gpu.end(stream), Err(code::CAPTURE_INVALIDATED))?;
    gpu.launch(0, "acb_nop", &[]).map_err(why("allowed again"))?;
    gpu.synchronize().map_err(why("synchronize"))
}

pub(super) fn events_from_outside_are_refused(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let other = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let event = gpu.event().map_err(why("event"))?;
    let _held = gpu.hold(other).map_err(why("hold"))?;
    gpu.record(event, other).map_err(why("record"))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    same("wait", gpu.wait_event(stream, event), Err(code::CAPTURE_ISOLATION))?;
    same("spoiled", gpu.end(stream), Err(code::CAPTURE_INVALIDATED))
}

pub(super) fn two_captures_do_not_merge(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let first = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let second = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let event = gpu.event().map_err(why("event"))?;
    gpu.begin(first, RELAXED).map_err(why("begin"))?;
    gpu.begin(second, RELAXED).map_err(why("begin"))?;
    gpu.launch(first, "acb_nop", &[]).map_err(why("launch"))?;
    gpu.record(event, first).map_err(why("record"))?;
    same("wait", gpu.wait_event(second, event), Err(code::CAPTURE_MERGE))?;
    same("spoiled", gpu.end(second), Err(code::CAPTURE_INVALIDATED))
}

pub(super) fn captured_events_are_no_moments(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let event = gpu.event().map_err(why("event"))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    gpu.record(event, stream).map_err(why("record"))?;
    same("query", gpu.driver.cuEventQuery(event), code::CAPTURED_EVENT)?;
    let _ = gpu.end(stream);
    gpu.record(event, stream).map_err(why("record"))?;
    same("a moment again", gpu.driver.cuEventSynchronize(event), 0)
}

pub(super) fn a_capture_tells_about_itself(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let ask = || {
        let (mut status, mut id, mut graph, mut count) = (9, 0, 0, 9);
        let mut list = std::ptr::null();
        let asked = gpu.driver.cuStreamGetCaptureInfo_v2(
            stream,
            &raw mut status,
            &raw mut id,
            &raw mut graph,
            &raw mut list,
            &raw mut count,
        );
        same("asked", asked, 0).map(|()| (status, id, graph, count))
    };
    same("nothing", ask()?.0, 0)?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    let (status, id, graph, count) = ask()?;
    same("active", (status, count), (ACTIVE, 0))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    same("behind a node", ask()?, (ACTIVE, id, graph, 1))?;
    same("its graph", gpu.end(stream), Ok(graph))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    same("another one", ask()?.1 != id, true)?;
    gpu.end(stream).map(drop).map_err(why("end"))
}

pub(super) fn dependencies_can_be_set(path: &Path) -> Result<(), String> {
    const SET: u32 = 1;
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    let none = std::ptr::null_mut();
    let set = gpu.driver.cuStreamUpdateCaptureDependencies(stream, none, 0, SET);
    same("set", set, 0)?;
    gpu.launch(stream, "acb_nop", &[]).map_err(why("launch"))?;
    let graph = gpu.end(stream).map_err(why("end"))?;
    let mut roots = 0;
    same("roots", gpu.driver.cuGraphGetRootNodes(graph, none, &raw mut roots), 0)?;
    same("two that do not wait", (roots, nodes(&gpu, graph)?), (2, 2))
}

pub(super) fn a_stream_that_goes_ends_its_capture(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    gpu.begin(stream, GLOBAL).map_err(why("begin"))?;
    // Whatever it says: afterwards nobody is kept from anything.
    let _ = gpu.driver.cuStreamDestroy_v2(stream);
    let other = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    gpu.launch(other, "acb_nop", &[]).map_err(why("launch"))?;
    gpu.wait(other).map_err(why("wait"))
}
