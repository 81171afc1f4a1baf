//! Memory of other libraries (Vulkan's, for one), by a descriptor: what lies behind it is mapped, and counts for nobody here.
//! Semaphores of theirs are not there.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::put;
use crate::code::{INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED};
use crate::driver;
use crate::handles::Handle;
use crate::objects::External;
use crate::physical::Physical;
use crate::space::{ALIGNMENT, RegionKind};

/// `CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD`
const DESCRIPTOR: c_uint = 1;
/// `CUDA_EXTERNAL_MEMORY_DEDICATED`
const DEDICATED: c_uint = 1;

calls! {
    fn cuImportExternalMemory(
        external: *mut sys::CUexternalMemory,
        wanted: *const sys::CUDA_EXTERNAL_MEMORY_HANDLE_DESC,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        if external.is_null() || wanted.is_null() {
            return Err(INVALID_VALUE);
        }
        // Kind, three words of handles, size, flags; kinds are read as numbers.
        let [kind, handle, _, size, flags] = wanted.cast::<[u64; 5]>().read();
        let (kind, descriptor, flags) = (kind as c_uint, handle as c_int, flags as c_uint);
        if size == 0 || flags & !DEDICATED != 0 {
            return Err(INVALID_VALUE);
        }
        if kind != DESCRIPTOR {
            // Other systems', and NVIDIA's own buffers.
            return Err(NOT_SUPPORTED);
        }
        let gpu = tables.context(context)?.gpu;
        let memory = Physical::adopt(descriptor, size as usize, gpu)?;
        let made = External { context, memory };
        put(external, tables.externals.insert(made).bits() as sys::CUexternalMemory)
    }

    fn cuExternalMemoryGetMappedBuffer(
        pointer: *mut u64,
        external: sys::CUexternalMemory,
        wanted: *const sys::CUDA_EXTERNAL_MEMORY_BUFFER_DESC,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        driver.current(&tables)?;
        let own = tables.externals.get(Handle::from_bits(external as u64)).ok_or(INVALID_HANDLE)?;
        if pointer.is_null() || wanted.is_null() {
            return Err(INVALID_VALUE);
        }
        let [offset, size] = wanted.cast::<[u64; 2]>().read();
        let flags = wanted.cast::<c_uint>().add(4).read();
        let fits = offset.checked_add(size).is_some_and(|end| end <= own.memory.length() as u64);
        if size == 0 || !fits || flags != 0 {
            return Err(INVALID_VALUE);
        }
        let (memory, context) = (Arc::clone(&own.memory), own.context);
        let (gpu, size) = (memory.gpu(), size as usize);
        let start = tables.space.add(size, ALIGNMENT, RegionKind::Allocation { context, gpu })?;
        tables.space.map(start, size, memory, offset as usize, 1 << gpu)?;
        put(pointer, start)
    }

    fn cuDestroyExternalMemory(external: sys::CUexternalMemory) {
        let mut tables = driver::get()?.lock();
        let found = tables.externals.remove(Handle::from_bits(external as u64));
        found.ok_or(INVALID_HANDLE).map(drop)
    }
}
