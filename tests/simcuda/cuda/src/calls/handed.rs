//! Memory that is handed on: objects that reach the memory of several GPUs at once, arrays whose memory the
//! program brings itself, descriptors for other devices.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::{StreamForm, sys};

use super::put;
use crate::code::{
    ILLEGAL_STATE, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, Outcome,
};
use crate::driver;
use crate::handles::Handle;
use crate::objects::{Binding, Multicast, Tables};
use crate::physical::Physical;
use crate::space::{GRANULARITY, RegionKind};

/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`
const DMA_BUF: c_uint = 1;
/// What ranges for other devices begin and end at.
const PAGE: usize = 4096;

calls! {
    fn cuMulticastCreate(handle: *mut u64, properties: *const sys::CUmulticastObjectProp) {
        let driver = driver::get()?;
        let (devices, size) = wanted(properties)?;
        if devices > driver.devices.len() {
            return Err(INVALID_DEVICE);
        }
        let made = Arc::new(Multicast { devices, size, members: Default::default() });
        put(handle, driver.lock().multicasts.insert(made).bits())
    }

    fn cuMulticastGetGranularity(
        granularity: *mut usize,
        properties: *const sys::CUmulticastObjectProp,
        option: c_uint,
    ) {
        driver::get()?;
        wanted(properties)?;
        if option > 1 {
            return Err(INVALID_VALUE);
        }
        put(granularity, GRANULARITY)
    }

    fn cuMulticastAddDevice(handle: u64, dev: c_int) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        let tables = driver.lock();
        let own = tables.multicasts.get(Handle::from_bits(handle)).ok_or(INVALID_VALUE)?;
        let mut members = own.members();
        if members.added.contains(&gpu) || members.added.len() == own.devices {
            return Err(INVALID_VALUE);
        }
        members.added.push(gpu);
        Ok(())
    }

    fn cuMulticastBindMem(
        handle: u64,
        offset: usize,
        memory: u64,
        memory_offset: usize,
        size: usize,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let mapped = tables.mapped.get(Handle::from_bits(memory)).ok_or(INVALID_VALUE)?;
        let memory = Arc::clone(&mapped.memory);
        if memory_offset.checked_add(size).is_none_or(|end| end > memory.length()) || flags != 0 {
            return Err(INVALID_VALUE);
        }
        tables.bind(handle, offset, size, memory_offset, vec![memory])
    }

    fn cuMulticastBindMem_v2(
        handle: u64,
        dev: c_int,
        offset: usize,
        memory: u64,
        memory_offset: usize,
        size: usize,
        flags: u64,
    ) {
        driver::get()?.gpu(dev)?;
        cuMulticastBindMem(handle, offset, memory, memory_offset, size, flags)
    }

    fn cuMulticastBindAddr(
        handle: u64,
        offset: usize,
        pointer: u64,
        size: usize,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let mapped = matches!(
            tables.space.region_of(pointer),
            Some((_, region)) if region.kind == RegionKind::Reservation
        );
        let (memories, inside) = tables.space.memories(pointer, size).ok_or(INVALID_VALUE)?;
        if flags != 0 || !mapped {
            return Err(INVALID_VALUE);
        }
        tables.bind(handle, offset, size, inside, memories)
    }

    fn cuMulticastBindAddr_v2(
        handle: u64,
        dev: c_int,
        offset: usize,
        pointer: u64,
        size: usize,
        flags: u64,
    ) {
        driver::get()?.gpu(dev)?;
        cuMulticastBindAddr(handle, offset, pointer, size, flags)
    }

    fn cuMulticastUnbind(handle: u64, dev: c_int, offset: usize, size: usize) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        let tables = driver.lock();
        let own = tables.multicasts.get(Handle::from_bits(handle)).ok_or(INVALID_VALUE)?;
        let mut members = own.members();
        let before = members.bindings.len();
        members.bindings.retain(|one| (one.gpu, one.offset, one.size) != (gpu, offset, size));
        if members.bindings.len() < before { Ok(()) } else { Err(INVALID_VALUE) }
    }

    fn cuMemGetHandleForAddressRange(
        handle: *mut c_void,
        pointer: u64,
        size: usize,
        kind: c_uint,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let aligned = pointer.is_multiple_of(PAGE as u64) && size.is_multiple_of(PAGE);
        if handle.is_null() || kind != DMA_BUF || flags > 1 || size == 0 || !aligned {
            return Err(INVALID_VALUE);
        }
        let (memories, _) = tables.space.memories(pointer, size).ok_or(INVALID_VALUE)?;
        // A descriptor is of one piece here.
        let [memory] = &memories[..] else { return Err(NOT_SUPPORTED) };
        memory.share()?;
        put(handle.cast::<c_int>(), memory.descriptor()?)
    }

    fn cuArrayGetSparseProperties(
        properties: *mut sys::CUDA_ARRAY_SPARSE_PROPERTIES,
        array: sys::CUarray,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let own = tables.arrays.get(Handle::from_bits(array as u64)).ok_or(INVALID_HANDLE)?;
        if properties.is_null() || !own.is_sparse() {
            return Err(INVALID_VALUE);
        }
        properties.write_bytes(0, 1);
        // The whole array is one tile: width, height, depth.
        let tile = properties.cast::<c_uint>();
        for (at, side) in own.size.iter().enumerate() {
            tile.add(at).write((*side).max(1) as c_uint);
        }
        Ok(())
    }
}

stream_calls! {
    fn cuMemMapArrayAsync cuMemMapArrayAsync_ptsz [form] (
        list: *mut sys::CUarrayMapInfo,
        count: c_uint,
        stream: sys::CUstream,
    ) {
        map_arrays(list.cast(), count as usize, stream, form)
    }
}

/// `CUarrayMapInfo`, with kinds as numbers.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapInfo {
    resource: c_uint,
    array: u64,
    subresource: c_uint,
    /// level, layer, offset and extent in three dimensions
    part: [c_uint; 8],
    operation: c_uint,
    handle_kind: c_uint,
    memory: u64,
    offset: u64,
    devices: c_uint,
    flags: c_uint,
    reserved: [c_uint; 2],
}

/// # Safety
/// There are as many as `count` says.
unsafe fn map_arrays(
    list: *const MapInfo,
    count: usize,
    stream: sys::CUstream,
    form: StreamForm,
) -> Outcome {
    const MAP: c_uint = 1;
    const UNMAP: c_uint = 2;
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    if list.is_null() || count == 0 {
        return Err(INVALID_VALUE);
    }
    for at in 0..count {
        // SAFETY: the caller vouches for the list.
        let info = unsafe { list.add(at).read_unaligned() };
        let array = tables.arrays.get(Handle::from_bits(info.array)).ok_or(INVALID_VALUE)?;
        let whole = array.size.map(|side| side.max(1) as c_uint);
        let (start, length) = (array.start, array.length());
        if info.resource != 0 || info.subresource != 0 || info.handle_kind != 0 {
            // Mipmaps and their tails.
            return Err(NOT_SUPPORTED);
        }
        let known = array.is_sparse() && info.part[..5] == [0; 5] && info.part[5..] == whole;
        if !known || info.flags != 0 || info.reserved != [0; 2] {
            return Err(INVALID_VALUE);
        }
        // What was handed in before uses the array as it is.
        tables = driver.wait(tables, |tables| {
            tables.streams.get(stream).is_none_or(|stream| stream.pending == 0)
        });
        match info.operation {
            MAP => {
                let mapped = tables.mapped.get(Handle::from_bits(info.memory));
                let memory = Arc::clone(&mapped.ok_or(INVALID_VALUE)?.memory);
                let gpu = memory.gpu();
                if info.devices != 1 << gpu {
                    return Err(INVALID_VALUE);
                }
                tables.space.map(start, length, memory, info.offset as usize, 1 << gpu)?;
            }
            UNMAP => tables.space.unmap(start, length)?,
            _ => return Err(INVALID_VALUE),
        }
    }
    Ok(())
}

/// How many devices, and how much memory of each.
///
/// # Safety
/// `properties` is null or the structure that it should be.
unsafe fn wanted(properties: *const sys::CUmulticastObjectProp) -> Outcome<(usize, usize)> {
    if properties.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null.
    let (devices, size, flags) =
        unsafe { ((*properties).numDevices, (*properties).size, (*properties).flags) };
    if devices == 0 || size == 0 || !size.is_multiple_of(GRANULARITY) || flags != 0 {
        return Err(INVALID_VALUE);
    }
    Ok((devices as usize, size))
}

impl Tables {
    /// Binds the memory of one GPU, in pieces, from an offset on.
    fn bind(
        &self,
        handle: u64,
        offset: usize,
        size: usize,
        inside: usize,
        memories: Vec<Arc<Physical>>,
    ) -> Outcome {
        let own = self.multicasts.get(Handle::from_bits(handle)).ok_or(INVALID_VALUE)?;
        let mut members = own.members();
        let aligned = [offset, size, inside].iter().all(|it| it.is_multiple_of(GRANULARITY));
        let end = offset.checked_add(size).ok_or(INVALID_VALUE)?;
        let gpu = memories.first().ok_or(INVALID_VALUE)?.gpu();
        let of_one = memories.iter().all(|memory| memory.gpu() == gpu);
        if !aligned || size == 0 || end > own.size || !of_one || !members.added.contains(&gpu) {
            return Err(INVALID_VALUE);
        }
        if members.added.len() < own.devices {
            return Err(ILLEGAL_STATE);
        }
        let overlaps =
            |one: &Binding| one.gpu == gpu && one.offset < end && offset < one.offset + one.size;
        if members.bindings.iter().any(overlaps) {
            return Err(INVALID_VALUE);
        }
        members.bindings.push(Binding { gpu, offset, size, memories, inside });
        Ok(())
    }
}
