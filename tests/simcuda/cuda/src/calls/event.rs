//! Events.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use super::put;
use crate::code::{
    CAPTURED_EVENT, ILLEGAL_STATE, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Outcome,
};
use crate::driver;
use crate::graph::Task;
use crate::handles::Handle;
use crate::objects::{Event, EventState, Tables};
use crate::shared_event::SharedEvent;
use crate::timeline::Submission;
use simcuda_device::Nanos;

const BLOCKING_SYNC: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;
/// How often an event of several processes is looked at.
const POLL: std::time::Duration = std::time::Duration::from_micros(100);
/// `CU_EVENT_RECORD_EXTERNAL`
const EXTERNAL: c_uint = 1;

calls! {
    fn cuEventCreate(event: *mut sys::CUevent, flags: c_uint) {
        let driver = driver::get()?;
        let known = BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS;
        let untimed = flags & DISABLE_TIMING != 0;
        if flags & !known != 0 || (flags & INTERPROCESS != 0 && !untimed) || event.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        let shared = match flags & INTERPROCESS {
            0 => None,
            _ => Some(SharedEvent::new()?),
        };
        let state = EventState::Unrecorded;
        let handle = tables.events.insert(Event { context, timed: !untimed, shared, state });
        put(event, handle.bits() as sys::CUevent)
    }

    fn cuEventDestroy(event: sys::CUevent) {
        cuEventDestroy_v2(event)
    }

    fn cuEventDestroy_v2(event: sys::CUevent) {
        let driver = driver::get()?;
        let handle = Handle::from_bits(event as u64);
        driver.lock().events.remove(handle).ok_or(INVALID_HANDLE).map(drop)
    }

    fn cuEventQuery(event: sys::CUevent) {
        let driver = driver::get()?;
        let handle = Handle::from_bits(event as u64);
        let mut tables = driver.look(driver.lock());
        tables.check_event(handle)?;
        tables.check_unsafe(driver::caller())?;
        let event = tables.event(handle)?;
        tables.context(event.context)?;
        match event.state {
            EventState::Pending(_) => Err(NOT_READY),
            EventState::Captured(..) => Err(CAPTURED_EVENT),
            EventState::Unrecorded | EventState::At(_) => {
                let over = event.shared.as_ref().is_none_or(|shared| shared.is_over());
                if over { Ok(()) } else { Err(NOT_READY) }
            }
        }
    }

    fn cuEventSynchronize(event: sys::CUevent) {
        let driver = driver::get()?;
        let handle = Handle::from_bits(event as u64);
        let mut tables = driver.lock();
        tables.check_event(handle)?;
        tables.check_unsafe(driver::caller())?;
        let context = tables.event(handle)?.context;
        if let Some(shared) = tables.event(handle)?.shared.clone() {
            let number = shared.latest();
            while !shared.has_reached(number) {
                tables.context(context)?;
                // Another process may have to end it, and tells nobody.
                drop(driver.look(tables));
                std::thread::sleep(POLL);
                tables = driver.lock();
            }
        }
        match tables.event(handle)?.state {
            EventState::Pending(op) => {
                tables = driver.wait(tables, |tables| !tables.timeline.is_pending(op));
            }
            EventState::Captured(..) | EventState::Unrecorded | EventState::At(_) => {}
        }
        tables.context(context).map(drop)
    }

    fn cuEventElapsedTime(milliseconds: *mut f32, start: sys::CUevent, end: sys::CUevent) {
        let driver = driver::get()?;
        let tables = driver.look(driver.lock());
        let start = moment(&tables, Handle::from_bits(start as u64))?;
        let end = moment(&tables, Handle::from_bits(end as u64))?;
        let (start, end) = (start.ok_or(NOT_READY)?, end.ok_or(NOT_READY)?);
        put(milliseconds, ((end as i64 - start as i64) as f64 / 1e6) as f32)
    }

    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: sys::CUevent, end: sys::CUevent) {
        cuEventElapsedTime(milliseconds, start, end)
    }
}

stream_calls! {
    fn cuEventRecord cuEventRecord_ptsz [form] (event: sys::CUevent, stream: sys::CUstream) {
        record(event as u64, stream as u64, form, 0)
    }

    fn cuEventRecordWithFlags cuEventRecordWithFlags_ptsz [form] (
        event: sys::CUevent,
        stream: sys::CUstream,
        flags: c_uint,
    ) {
        record(event as u64, stream as u64, form, flags)
    }
}

fn record(event: u64, stream: u64, form: acb_cuda_abi::StreamForm, flags: c_uint) -> Outcome {
    let driver = driver::get()?;
    if flags > EXTERNAL {
        return Err(INVALID_VALUE);
    }
    let mut tables = driver.lock();
    let event = Handle::from_bits(event);
    let stream = driver.stream(&mut tables, stream, form)?;
    let owner = tables.streams.get(stream).ok_or(INVALID_HANDLE)?.context;
    if tables.event(event)?.context != owner {
        return Err(INVALID_HANDLE);
    }
    tables.check_legacy(stream)?;
    match (tables.recording(stream)?, flags) {
        (Some(capture), EXTERNAL) => {
            return tables.record(stream, capture, Task::Record(event)).map(drop);
        }
        (Some(capture), _) => {
            tables.capture_event(stream, capture, event);
            return Ok(());
        }
        (None, EXTERNAL) => return Err(ILLEGAL_STATE),
        (None, _) => {}
    }
    let gpu = tables.gpu_of(stream)?;
    let work = tables.recording_work(event);
    let submission = Submission { engine: None, gpu, length: 0, work };
    let now = simcuda_device::clock::now();
    let op = tables.submit(&driver.engines(), stream, submission, &[], now)?;
    // It cannot end before the lock is given back.
    tables.is_recorded(event, op);
    if op.is_some() {
        driver.stir(&tables);
    }
    Ok(())
}

/// When a timed event was reached; none: not yet.
fn moment(tables: &Tables, handle: Handle<Event>) -> Outcome<Option<Nanos>> {
    let event = tables.event(handle)?;
    tables.context(event.context)?;
    if !event.timed {
        return Err(INVALID_HANDLE);
    }
    match event.state {
        EventState::Unrecorded => Err(INVALID_HANDLE),
        EventState::Captured(..) => Err(CAPTURED_EVENT),
        EventState::Pending(_) => Ok(None),
        EventState::At(moment) => Ok(Some(moment)),
    }
}
