//! Memory and events for other processes: a handle names the process, and the file behind what is shared.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::put;
use crate::code::{INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, Outcome};
use crate::driver;
use crate::handles::Handle;
use crate::objects::{Event, EventState, OpenedMemory};
use crate::physical::Physical;
use crate::shared_event::SharedEvent;
use crate::space::{ALIGNMENT, RegionKind};

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`
const LAZY_PEERS: c_uint = 1;
/// What handles of this library begin with.
const OF_MEMORY: u64 = u64::from_le_bytes(*b"simcuda\x02");
const OF_FABRIC: u64 = u64::from_le_bytes(*b"simcuda\x05");
const OF_AN_EVENT: u64 = u64::from_le_bytes(*b"simcuda\x03");

/// What handles say: the process, a file's number there, and for memory how much it is and which GPU's.
type Named = [u64; 4];

/// # Safety
/// `handle` is null or has the 64 bytes of a handle.
unsafe fn write_handle<T>(handle: *mut T, mark: u64, named: Named) -> Outcome {
    if handle.is_null() {
        return Err(INVALID_VALUE);
    }
    let [a, b, c, d] = named;
    // SAFETY: not null, and as long.
    unsafe { handle.cast::<[u64; 8]>().write_unaligned([mark, a, b, c, d, 0, 0, 0]) };
    Ok(())
}

/// # Safety
/// `handle` has the 64 bytes of a handle.
unsafe fn read_handle<T>(handle: *const T, mark: u64) -> Outcome<Named> {
    // SAFETY: the caller vouches for it.
    let [own, a, b, c, d, rest @ ..] = unsafe { handle.cast::<[u64; 8]>().read_unaligned() };
    if own == mark && rest == [0; 3] { Ok([a, b, c, d]) } else { Err(INVALID_VALUE) }
}

/// A handle for other machines; here they are processes of this one.
///
/// # Safety
/// `handle` has the 64 bytes of such a handle.
pub(super) unsafe fn write_fabric(handle: *mut c_void, memory: &Physical) -> Outcome {
    let (number, length) = (memory.share()? as u64, memory.length() as u64);
    let named = [u64::from(std::process::id()), number, length, memory.gpu() as u64];
    // SAFETY: the caller vouches for it.
    unsafe { write_handle(handle, OF_FABRIC, named) }
}

/// The memory that such a handle names.
///
/// # Safety
/// As above.
pub(super) unsafe fn read_fabric(handle: *const c_void) -> Outcome<Arc<Physical>> {
    // SAFETY: the caller vouches for it.
    let [pid, number, length, gpu] = unsafe { read_handle(handle, OF_FABRIC) }?;
    Physical::import(pid as u32, number as i32, length as usize, gpu as usize)
}

calls! {
    fn cuIpcGetMemHandle(handle: *mut sys::CUipcMemHandle, pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        let (start, region) = tables.space.region_of(pointer).ok_or(INVALID_VALUE)?;
        // Memory that the program mapped, and that of pools, has other ways.
        let RegionKind::Allocation { context, .. } = region.kind else {
            return Err(INVALID_VALUE);
        };
        if handle.is_null() {
            return Err(INVALID_VALUE);
        }
        let tables = driver.wait(tables, |tables| tables.is_drained(context));
        let memory = tables.space.memory_at(start).ok_or(INVALID_VALUE)?;
        if memory.is_foreign() {
            return Err(INVALID_VALUE);
        }
        let (number, length) = (memory.share()? as u64, memory.length() as u64);
        let named = [u64::from(std::process::id()), number, length, memory.gpu() as u64];
        write_handle(handle, OF_MEMORY, named)
    }

    fn cuIpcOpenMemHandle(
        pointer: *mut u64,
        handle: sys::CUipcMemHandle,
        flags: c_uint,
    ) {
        cuIpcOpenMemHandle_v2(pointer, handle, flags)
    }

    fn cuIpcOpenMemHandle_v2(
        pointer: *mut u64,
        handle: sys::CUipcMemHandle,
        flags: c_uint,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        if pointer.is_null() || flags != LAZY_PEERS {
            return Err(INVALID_VALUE);
        }
        let named @ [pid, number, length, gpu] = read_handle(&raw const handle, OF_MEMORY)?;
        if pid == u64::from(std::process::id()) {
            // It is there already, under its own address.
            return Err(INVALID_CONTEXT);
        }
        let known = tables.opened.iter_mut().find(|(_, opened)| opened.named == named);
        if let Some((&start, opened)) = known {
            // One context of a process has it, and has it once.
            if opened.context != context {
                return Err(INVALID_VALUE);
            }
            opened.times += 1;
            return put(pointer, start);
        }
        let (gpu, length) = (gpu as usize, length as usize);
        if gpu != tables.context(context)?.gpu {
            return Err(INVALID_VALUE);
        }
        let memory = Physical::import(pid as u32, number as i32, length, gpu)?;
        let start = tables.space.add(length, ALIGNMENT, RegionKind::Imported { context })?;
        tables.space.map(start, length, memory, 0, 1 << gpu)?;
        tables.opened.insert(start, OpenedMemory { context, named, times: 1 });
        put(pointer, start)
    }

    fn cuIpcCloseMemHandle(pointer: u64) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        driver.current(&tables)?;
        let opened = tables.opened.get_mut(&pointer).ok_or(INVALID_VALUE)?;
        opened.times -= 1;
        if opened.times > 0 {
            return Ok(());
        }
        let context = opened.context;
        tables.opened.remove(&pointer);
        let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
        tables.space.remove(pointer).ok_or(INVALID_VALUE).map(drop)
    }

    fn cuIpcGetEventHandle(handle: *mut sys::CUipcEventHandle, event: sys::CUevent) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        let event = tables.event(Handle::from_bits(event as u64))?;
        // Only what was made for it can be shared.
        let shared = event.shared.as_ref().ok_or(INVALID_HANDLE)?;
        let named = [u64::from(std::process::id()), shared.number() as u64, 0, 0];
        write_handle(handle, OF_AN_EVENT, named)
    }

    fn cuIpcOpenEventHandle(event: *mut sys::CUevent, handle: sys::CUipcEventHandle) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        if event.is_null() {
            return Err(INVALID_VALUE);
        }
        let [pid, number, ..] = read_handle(&raw const handle, OF_AN_EVENT)?;
        if pid == u64::from(std::process::id()) {
            return Err(INVALID_CONTEXT);
        }
        let shared = SharedEvent::import(pid as u32, number as i32)?;
        let (shared, state) = (Some(shared), EventState::Unrecorded);
        let opened = Event { context, timed: false, shared, state };
        put(event, tables.events.insert(opened).bits() as sys::CUevent)
    }
}
