//! Memory for other processes: a handle names the process, the file behind the
//! memory, and how much it is. Events are not shared.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use super::put;
use crate::code::{INVALID_CONTEXT, INVALID_VALUE};
use crate::driver;
use crate::physical::Physical;
use crate::space::{ALIGNMENT, RegionKind};

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`
const LAZY_PEERS: c_uint = 1;
/// What handles of this library begin with.
const MARK: u64 = u64::from_le_bytes(*b"simcuda\x02");

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
        let number = memory.share()?;
        handle.write_bytes(0, 1);
        let fields = handle.cast::<u64>();
        fields.write_unaligned(MARK);
        fields.add(1).write_unaligned(u64::from(std::process::id()));
        fields.add(2).write_unaligned(number as u64);
        fields.add(3).write_unaligned(memory.length() as u64);
        fields.add(4).write_unaligned(memory.gpu() as u64);
        Ok(())
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
        let fields = (&raw const handle).cast::<u64>();
        let [mark, pid, number, length, gpu] =
            std::array::from_fn(|at| fields.add(at).read_unaligned());
        if pointer.is_null() || flags != LAZY_PEERS || mark != MARK {
            return Err(INVALID_VALUE);
        }
        if pid == u64::from(std::process::id()) {
            // It is there already, under its own address.
            return Err(INVALID_CONTEXT);
        }
        let (gpu, length) = (gpu as usize, length as usize);
        if gpu != tables.context(context)?.gpu {
            return Err(INVALID_VALUE);
        }
        let memory = Physical::import(pid as u32, number as i32, length, gpu)?;
        let start = tables.space.add(length, ALIGNMENT, RegionKind::Imported { context })?;
        tables.space.map(start, length, memory, 0, 1 << gpu)?;
        put(pointer, start)
    }

    fn cuIpcCloseMemHandle(pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        let region = tables.space.region(pointer).ok_or(INVALID_VALUE)?;
        let RegionKind::Imported { context } = region.kind else { return Err(INVALID_VALUE) };
        let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
        tables.space.remove(pointer).ok_or(INVALID_VALUE).map(drop)
    }
}
