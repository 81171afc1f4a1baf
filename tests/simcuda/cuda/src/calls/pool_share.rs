//! Pools that several processes have: one makes the pool and allocates, the others import the pool and then single
//! allocations.
//!
//! A pool's descriptor is of a file that names the process, the pool and the GPU; what is told of an allocation names the
//! process, the pool, and the file behind the memory.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;

use acb_cuda_abi::sys;

use super::put;
use crate::code::{INVALID_DEVICE, INVALID_VALUE, OPERATING_SYSTEM};
use crate::driver;
use crate::handles::Handle;
use crate::objects::Pool;
use crate::physical::{Physical, anonymous_file, file_of};
use crate::space::RegionKind;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`
const FILE_DESCRIPTOR: c_uint = 1;
/// How a pool's file is called.
const NAME: &str = "simcuda-pool";
/// What is told of an allocation begins so.
const OF_AN_ALLOCATION: u64 = u64::from_le_bytes(*b"simcuda\x04");

calls! {
    fn cuMemPoolExportToShareableHandle(
        shareable: *mut c_void,
        pool: sys::CUmemoryPool,
        kind: c_uint,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle: Handle<Pool> = Handle::from_bits(pool as u64);
        let pool = tables.pools.get_mut(handle).ok_or(INVALID_VALUE)?;
        let may = kind == FILE_DESCRIPTOR && pool.handle_types & kind != 0;
        if shareable.is_null() || !may || flags != 0 || pool.origin.is_some() {
            return Err(INVALID_VALUE);
        }
        if pool.file.is_none() {
            let file = anonymous_file(NAME)?;
            let gpu = driver.devices[pool.ordinal] as u64;
            let named = [u64::from(std::process::id()), handle.bits(), gpu];
            let bytes: Vec<u8> = named.iter().flat_map(|word| word.to_ne_bytes()).collect();
            file.write_all_at(&bytes, 0).map_err(|_| OPERATING_SYSTEM)?;
            pool.file = Some(file);
        }
        let copy = pool.file.as_ref().ok_or(OPERATING_SYSTEM)?.try_clone();
        put(shareable.cast::<c_int>(), copy.map_err(|_| OPERATING_SYSTEM)?.into_raw_fd())
    }

    fn cuMemPoolImportFromShareableHandle(
        pool: *mut sys::CUmemoryPool,
        shareable: *mut c_void,
        kind: c_uint,
        flags: u64,
    ) {
        let driver = driver::get()?;
        if pool.is_null() || kind != FILE_DESCRIPTOR || flags != 0 {
            return Err(INVALID_VALUE);
        }
        // The descriptor itself, in place of a pointer.
        let file = file_of(std::process::id(), shareable as usize as c_int, NAME)?;
        let mut bytes = [0; 24];
        file.read_exact_at(&mut bytes, 0).map_err(|_| INVALID_VALUE)?;
        let [pid, of, gpu]: [u64; 3] = std::mem::transmute(bytes);
        let ordinal = driver.devices.iter().position(|&own| own as u64 == gpu);
        let made = Pool {
            handle_types: kind,
            origin: Some([pid, of]),
            ..Pool::new(ordinal.ok_or(INVALID_DEVICE)?, false)
        };
        put(pool, driver.lock().pools.insert(made).bits() as sys::CUmemoryPool)
    }

    fn cuMemPoolExportPointer(data: *mut sys::CUmemPoolPtrExportData, pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let region = tables.space.region(pointer).ok_or(INVALID_VALUE)?;
        let RegionKind::Pooled { pool: handle, .. } = region.kind else {
            return Err(INVALID_VALUE);
        };
        let pool = tables.pools.get(handle).ok_or(INVALID_VALUE)?;
        // The pool has been handed out already.
        if pool.file.is_none() || data.is_null() {
            return Err(INVALID_VALUE);
        }
        let memory = tables.space.memory_at(pointer).ok_or(INVALID_VALUE)?;
        let (pid, number) = (u64::from(std::process::id()), memory.share()? as u64);
        let (length, gpu) = (memory.length() as u64, memory.gpu() as u64);
        let words = [OF_AN_ALLOCATION, pid, handle.bits(), number, length, gpu, 0, 0];
        put(data.cast::<[u64; 8]>(), words)
    }

    fn cuMemPoolImportPointer(
        pointer: *mut u64,
        pool: sys::CUmemoryPool,
        data: *mut sys::CUmemPoolPtrExportData,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle: Handle<Pool> = Handle::from_bits(pool as u64);
        let pool = tables.pools.get(handle).ok_or(INVALID_VALUE)?;
        if pointer.is_null() || data.is_null() {
            return Err(INVALID_VALUE);
        }
        let [mark, pid, of, number, length, gpu, ..] = data.cast::<[u64; 8]>().read_unaligned();
        if mark != OF_AN_ALLOCATION || pool.origin != Some([pid, of]) {
            return Err(INVALID_VALUE);
        }
        let (length, gpu) = (length as usize, gpu as usize);
        let memory = Physical::import(pid as u32, number as c_int, length, gpu)?;
        put(pointer, tables.import_pooled(handle, memory)?)
    }
}
