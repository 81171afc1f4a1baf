//! Streams, and functions of the program's that run in them.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::put;
use crate::code::{ILLEGAL_STATE, INVALID_HANDLE, INVALID_VALUE, NOT_READY};
use crate::driver;
use crate::graph::Task;
use crate::handles::Handle;
use crate::objects::{EventState, StreamKind, Tables};
use crate::timeline::Submission;
use crate::work::{HostCall, HostFunction, Work};

const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_WAIT_EXTERNAL`
const EXTERNAL: c_uint = 1;
const GREATEST_PRIORITY: c_int = -5;

calls! {
    fn cuStreamCreate(stream: *mut sys::CUstream, flags: c_uint) {
        cuStreamCreateWithPriority(stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(stream: *mut sys::CUstream, flags: c_uint, priority: c_int) {
        let driver = driver::get()?;
        if flags & !NON_BLOCKING != 0 || stream.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        let kind = if flags & NON_BLOCKING != 0 {
            StreamKind::NonBlocking
        } else {
            StreamKind::Blocking
        };
        let priority = priority.clamp(GREATEST_PRIORITY, 0);
        let handle = tables.add_stream(context, kind, flags, priority);
        put(stream, handle.bits() as sys::CUstream)
    }

    fn cuStreamDestroy(stream: sys::CUstream) {
        cuStreamDestroy_v2(stream)
    }

    fn cuStreamDestroy_v2(stream: sys::CUstream) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(stream as u64);
        let context = tables.streams.get(handle).ok_or(INVALID_HANDLE)?.context;
        tables.leave_capture(handle);
        // Its work goes on; nothing can follow it.
        tables.streams.remove(handle);
        if let Some(context) = tables.contexts.get_mut(context) {
            context.streams.retain(|&other| other != handle);
        }
        Ok(())
    }
}

stream_calls! {
    fn cuStreamSynchronize cuStreamSynchronize_ptsz [form] (stream: sys::CUstream) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        let context = tables.streams.get(handle).ok_or(INVALID_HANDLE)?.context;
        tables.check_waitable(handle)?;
        let tails = tables.tails(handle);
        let tables = driver.wait(tables, |tables| {
            tails.iter().all(|&tail| !tables.timeline.is_pending(tail))
        });
        tables.context(context).map(drop)
    }

    fn cuStreamQuery cuStreamQuery_ptsz [form] (stream: sys::CUstream) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        let context = tables.streams.get(handle).ok_or(INVALID_HANDLE)?.context;
        tables.check_waitable(handle)?;
        let tables = driver.look(tables);
        let tails = tables.tails(handle);
        tables.context(context)?;
        if tails.iter().any(|&tail| tables.timeline.is_pending(tail)) {
            return Err(NOT_READY);
        }
        Ok(())
    }

    fn cuStreamWaitEvent cuStreamWaitEvent_ptsz [form] (
        stream: sys::CUstream,
        event: sys::CUevent,
        flags: c_uint,
    ) {
        let driver = driver::get()?;
        if flags > EXTERNAL {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        let event = Handle::from_bits(event as u64);
        tables.event(event)?;
        tables.check_legacy(handle)?;
        if flags == EXTERNAL {
            let capture = tables.recording(handle)?.ok_or(ILLEGAL_STATE)?;
            return tables.record(handle, capture, Task::Wait(event)).map(drop);
        }
        if tables.capture_wait(handle, event)? {
            return Ok(());
        }
        let event = tables.event(event)?;
        let (work, before) = match (&event.shared, &event.state) {
            (Some(shared), _) if shared.is_over() => return Ok(()),
            (Some(shared), _) => (Work::Await(Arc::clone(shared), shared.latest()), None),
            (None, EventState::Pending(op)) => (Work::Nothing, Some(*op)),
            (None, _) => return Ok(()),
        };
        let gpu = tables.gpu_of(handle)?;
        let submission = Submission { engine: None, gpu, length: 0, work };
        driver.submit(tables, handle, submission, before.as_slice()).map(drop)
    }

    fn cuLaunchHostFunc cuLaunchHostFunc_ptsz [form] (
        stream: sys::CUstream,
        function: *mut c_void,
        data: *mut c_void,
    ) {
        let driver = driver::get()?;
        if function.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        let gpu = tables.gpu_of(handle)?;
        let function = HostFunction::Plain(
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(function),
        );
        let work = Work::Host(HostCall { function, data: data as usize });
        let submission = Submission { engine: None, gpu, length: 0, work };
        driver.submit(tables, handle, submission, &[]).map(drop)
    }

    fn cuLaunchHostFunc_v2 cuLaunchHostFunc_v2_ptsz [form] (
        stream: sys::CUstream,
        function: *mut c_void,
        data: *mut c_void,
        _mode: c_uint,
    ) {
        if form == acb_cuda_abi::StreamForm::Legacy {
            cuLaunchHostFunc(stream, function, data)
        } else {
            cuLaunchHostFunc_ptsz(stream, function, data)
        }
    }

    fn cuStreamAddCallback cuStreamAddCallback_ptsz [form] (
        stream: sys::CUstream,
        callback: *mut c_void,
        data: *mut c_void,
        flags: c_uint,
    ) {
        let driver = driver::get()?;
        if callback.is_null() || flags != 0 {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        // These are not captured; `cuLaunchHostFunc` is.
        tables.check_waitable(handle)?;
        let gpu = tables.gpu_of(handle)?;
        let function = HostFunction::Callback(
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u64, u32, *mut c_void)>(
                callback,
            ),
            stream as u64,
        );
        let work = Work::Host(HostCall { function, data: data as usize });
        let submission = Submission { engine: None, gpu, length: 0, work };
        driver.submit(tables, handle, submission, &[]).map(drop)
    }

    fn cuStreamGetCtx cuStreamGetCtx_ptsz [form] (
        stream: sys::CUstream,
        context: *mut sys::CUcontext,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        let owner = tables.streams.get(handle).ok_or(INVALID_HANDLE)?.context;
        put(context, owner.bits() as sys::CUcontext)
    }

    fn cuStreamGetDevice cuStreamGetDevice_ptsz [form] (
        stream: sys::CUstream,
        device: *mut c_int,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        let owner = tables.streams.get(handle).ok_or(INVALID_HANDLE)?.context;
        put(device, tables.context(owner)?.ordinal as c_int)
    }

    fn cuStreamGetFlags cuStreamGetFlags_ptsz [form] (
        stream: sys::CUstream,
        flags: *mut c_uint,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        put(flags, tables.streams.get(handle).ok_or(INVALID_HANDLE)?.flags)
    }

    fn cuStreamGetPriority cuStreamGetPriority_ptsz [form] (
        stream: sys::CUstream,
        priority: *mut c_int,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        put(priority, tables.streams.get(handle).ok_or(INVALID_HANDLE)?.priority)
    }

    fn cuStreamGetId cuStreamGetId_ptsz [form] (stream: sys::CUstream, id: *mut u64) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        put(id, tables.streams.get(handle).ok_or(INVALID_HANDLE)?.id)
    }

    fn cuStreamAttachMemAsync cuStreamAttachMemAsync_ptsz [form] (
        stream: sys::CUstream,
        _pointer: u64,
        _length: usize,
        _flags: c_uint,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = driver.stream(&mut tables, stream as u64, form)?;
        tables.check_waitable(handle)
    }
}

impl Tables {
    /// The GPU that a stream's work runs on.
    pub(crate) fn gpu_of(
        &self,
        stream: Handle<crate::objects::Stream>,
    ) -> crate::code::Outcome<usize> {
        let context = self.streams.get(stream).ok_or(INVALID_HANDLE)?.context;
        Ok(self.context(context)?.gpu)
    }
}
