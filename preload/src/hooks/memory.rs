//! Device memory comes and goes: first room, then memory; first the memory goes, then its room.
//!
//! Owns: how many bytes each kind of allocation takes. Does not own: the account (`memory`).
//!
//! The forms of CUDA 3.1 and before, with 32-bit addresses, pass through uncounted: drivers of
//! this decade give such programs no memory.
//! Stream-ordered allocations count from the call that allocates to the call that frees.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::{graph, pool, unasked};
use crate::memory::{Key, LEDGER};
use crate::pager::{Freed, PAGER};
use crate::table::real;
use crate::work::{PER_THREAD, WORK, current_context};
use acb_cuda_abi::{CuResult, StreamForm, sys};
use std::ffi::*;

/// Large allocations are made of such pieces, small ones are cut from shared ones.
const GRANULE: u64 = 2 << 20;
const SMALL: u64 = 512;

/// `CUDA_ARRAY3D_SPARSE`, `CUDA_ARRAY3D_DEFERRED_MAPPING`
const SPARSE: c_uint = 0x40;
const DEFERRED: c_uint = 0x80;

/// Allocates: `place` is where the driver puts what `key` makes a key of.
///
/// # Safety
/// `place` is written by `call` when it succeeds.
unsafe fn allocate<T>(
    symbol: &'static str,
    bytes: u64,
    place: *mut T,
    key: impl FnOnce(T) -> Key,
    call: impl Fn() -> CuResult,
) -> CuResult {
    // SAFETY: the caller vouches for it.
    unsafe { allocate_on(current_device(), symbol, bytes, place, key, call) }
}

/// The same on a device; `None`: it takes no memory of one.
///
/// # Safety
/// As above.
unsafe fn allocate_on<T>(
    device: Option<c_int>,
    symbol: &'static str,
    bytes: u64,
    place: *mut T,
    key: impl FnOnce(T) -> Key,
    call: impl Fn() -> CuResult,
) -> CuResult {
    let Some(device) = device else { return call() };
    let mut promise = LEDGER.reserve(symbol, device, rounded(bytes));
    if promise.is_none() && PAGER.drain_device(device as u32) {
        promise = LEDGER.reserve(symbol, device, rounded(bytes));
    }
    let Some(promise) = promise else { return CuResult::OUT_OF_MEMORY };
    // There is room, unless the driver itself has grown into it.
    let result = unasked::again(symbol, call);
    if result.is_success() {
        // SAFETY: the call succeeded.
        LEDGER.allocated(promise, key(unsafe { place.read() }), current_context());
    } else {
        LEDGER.forget(promise);
    }
    result
}

/// Linear memory of the driver's: of a pool for other processes, or an allocation of its own.
fn free_address(address: u64, call: impl Fn() -> CuResult) -> CuResult {
    pool::free_shared(address, &call).unwrap_or_else(|| free(Key::Pointer(address), call))
}

fn free(key: Key, call: impl FnOnce() -> CuResult) -> CuResult {
    let taken = LEDGER.take(key);
    let result = call();
    match taken {
        Some(taken) if result.is_success() => LEDGER.freed(taken),
        Some(taken) => LEDGER.put_back(taken),
        None => {}
    }
    result
}

pub(super) fn rounded(bytes: u64) -> u64 {
    let unit = if bytes >= GRANULE / 2 { GRANULE } else { SMALL };
    bytes.checked_next_multiple_of(unit).unwrap_or(bytes)
}

pub(super) fn current_device() -> Option<c_int> {
    let mut device: c_int = 0;
    // SAFETY: a place on this stack.
    unsafe { real::cuCtxGetDevice(&raw mut device) }.is_success().then_some(device)
}

// ---------------------------------------------------------------- linear memory

pub(crate) unsafe fn cuMemAlloc(dptr: *mut c_uint, bytesize: c_uint) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemAlloc(dptr, bytesize) }
}

pub(crate) unsafe fn cuMemAlloc_v2(dptr: *mut u64, bytesize: usize) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        if let Some(result) = paged("cuMemAlloc", bytesize as u64, dptr) {
            return result;
        }
        allocate("cuMemAlloc", bytesize as u64, dptr, Key::Pointer, || {
            real::cuMemAlloc_v2(dptr, bytesize)
        })
    }
}

pub(crate) unsafe fn cuMemAllocPitch(
    dptr: *mut c_uint,
    pPitch: *mut c_uint,
    WidthInBytes: c_uint,
    Height: c_uint,
    ElementSizeBytes: c_uint,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemAllocPitch(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes) }
}

pub(crate) unsafe fn cuMemAllocPitch_v2(
    dptr: *mut u64,
    pPitch: *mut usize,
    WidthInBytes: usize,
    Height: usize,
    ElementSizeBytes: c_uint,
) -> CuResult {
    // The driver chooses the pitch; 512 is the largest alignment that it has used.
    let pitch = (WidthInBytes as u64).checked_next_multiple_of(512).unwrap_or(u64::MAX);
    let bytes = pitch.saturating_mul(Height as u64);
    // SAFETY: the program's own arguments.
    unsafe {
        let known = matches!(ElementSizeBytes, 4 | 8 | 16) && !pPitch.is_null() && WidthInBytes > 0;
        if known && let Some(result) = paged("cuMemAllocPitch", bytes, dptr) {
            if result.is_success() {
                pPitch.write(pitch as usize);
            }
            return result;
        }
        allocate("cuMemAllocPitch", bytes, dptr, Key::Pointer, || {
            real::cuMemAllocPitch_v2(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes)
        })
    }
}

/// Managed memory may exceed the GPU by design; it is counted as if it all were there, as long as
/// that is possible at all.
pub(crate) unsafe fn cuMemAllocManaged(dptr: *mut u64, bytesize: usize, flags: c_uint) -> CuResult {
    // SAFETY: the program's own arguments.
    let call = || unsafe { real::cuMemAllocManaged(dptr, bytesize, flags) };
    let capacity = current_device().and_then(|device| LEDGER.info(device)).map(|(free, _)| free);
    if capacity.is_some_and(|free| bytesize as u64 > free) {
        crate::log::info!("cuMemAllocManaged: {bytesize} bytes exceed the GPU and are not counted");
        return call();
    }
    // SAFETY: the driver writes `dptr` when it succeeds.
    unsafe { allocate("cuMemAllocManaged", bytesize as u64, dptr, Key::Pointer, call) }
}

pub(crate) unsafe fn cuMemFree(dptr: c_uint) -> CuResult {
    // SAFETY: the program's own argument.
    free(Key::Pointer(dptr.into()), || unsafe { real::cuMemFree(dptr) })
}

pub(crate) unsafe fn cuMemFree_v2(dptr: u64) -> CuResult {
    if let Freed::Done(result) = PAGER.free(dptr) {
        return result;
    }
    // SAFETY: the program's own argument.
    free_address(dptr, || unsafe { real::cuMemFree_v2(dptr) })
}

/// Memory of the pager's; `None`: it pages nothing here, or the driver has to say what is wrong.
///
/// # Safety
/// `place` is NULL or a place of the program's.
unsafe fn paged(symbol: &'static str, bytes: u64, place: *mut u64) -> Option<CuResult> {
    if !PAGER.is_active() || place.is_null() || bytes == 0 || current_device().is_none() {
        return None;
    }
    Some(match PAGER.allocate(symbol, bytes) {
        Ok(address) => {
            // SAFETY: not NULL.
            unsafe { place.write(address) };
            CuResult::SUCCESS
        }
        Err(result) => result,
    })
}

/// What a stream means in a call of this form: its handle, and the thread of a per-thread default stream.
pub(super) fn stream_of(stream: sys::CUstream, form: StreamForm) -> (usize, u64) {
    match (stream as usize, form) {
        (PER_THREAD, _) | (0, StreamForm::PerThread) => {
            WORK.note_per_thread();
            (PER_THREAD, rustix::thread::gettid().as_raw_nonzero().get() as u64)
        }
        (handle, _) => (handle, 0),
    }
}

/// What is captured is the graph's (`graph`), and its memory the driver's.
pub(super) fn is_captured(stream: usize) -> bool {
    if !WORK.is_capturing() {
        return false;
    }
    let mut status: c_uint = 0;
    // SAFETY: the program's own stream, and a place on this stack.
    let result = unsafe { real::cuStreamIsCapturing(stream as sys::CUstream, &raw mut status) };
    !result.is_success() || status != 0
}

macro_rules! stream_ordered {
    ($($symbol:ident $name:literal $form:ident ($($parameter:ident: $kind:ty),*) from $pool:expr, in $stream:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(dptr: *mut u64, bytesize: usize, $($parameter: $kind),*) -> CuResult {
            // SAFETY: the program's own arguments.
            unsafe {
                if let Some(result) = in_stream($name, dptr, bytesize as u64, $pool, ($stream, StreamForm::$form)) {
                    return result;
                }
                if let Some(graph) = graph::captured(stream_of($stream, StreamForm::$form).0) {
                    return graph::allocate($name, graph, bytesize as u64, dptr, || {
                        real::$symbol(dptr, bytesize, $($parameter),*)
                    });
                }
                let call = || real::$symbol(dptr, bytesize, $($parameter),*);
                if let Some(result) = pool::allocate_shared($name, bytesize as u64, dptr, $pool, call) {
                    return result;
                }
                let device = pool::device_of($pool, current_device());
                allocate_on(device, $name, bytesize as u64, dptr, Key::Pointer, call)
            }
        }
    )*};
}

stream_ordered! {
    cuMemAllocAsync "cuMemAllocAsync" Legacy (hStream: sys::CUstream) from None, in hStream;
    cuMemAllocAsync_ptsz "cuMemAllocAsync" PerThread (hStream: sys::CUstream) from None, in hStream;
    cuMemAllocFromPoolAsync "cuMemAllocFromPoolAsync" Legacy (pool: sys::CUmemoryPool, hStream: sys::CUstream)
        from Some(pool as u64), in hStream;
    cuMemAllocFromPoolAsync_ptsz "cuMemAllocFromPoolAsync" PerThread (pool: sys::CUmemoryPool, hStream: sys::CUstream)
        from Some(pool as u64), in hStream;
}

/// Memory of the pager's in stream order; `None`: it is the driver's own, or the driver has to say what is wrong.
///
/// # Safety
/// `place` is NULL or a place of the program's.
unsafe fn in_stream(
    symbol: &'static str,
    place: *mut u64,
    bytes: u64,
    pool: Option<u64>,
    (stream, form): (sys::CUstream, StreamForm),
) -> Option<CuResult> {
    if !PAGER.is_active() || place.is_null() || bytes == 0 || current_device().is_none() {
        return None;
    }
    let (stream, thread) = stream_of(stream, form);
    if is_captured(stream) {
        return None;
    }
    let source = PAGER.source(pool, stream)?;
    let address = match PAGER.reuse_in_stream(bytes, source, stream, thread) {
        Some(address) => Ok(address),
        None => match PAGER.use_again(bytes, source) {
            Some(address) => Ok(address),
            None => PAGER.allocate_in_pool(symbol, bytes, source),
        },
    };
    Some(match address {
        Ok(address) => {
            // SAFETY: not NULL.
            unsafe { place.write(address) };
            CuResult::SUCCESS
        }
        Err(result) => result,
    })
}

/// cuMemFreeAsync, in either form.
fn free_in_stream(
    dptr: u64,
    hStream: sys::CUstream,
    form: StreamForm,
    call: impl Fn() -> CuResult,
) -> CuResult {
    let (stream, thread) = stream_of(hStream, form);
    if PAGER.is_active()
        && !is_captured(stream)
        && let Freed::Done(result) = PAGER.free_in_stream(dptr, stream, thread)
    {
        return result;
    }
    match graph::captured(stream) {
        Some(graph) => graph::free(graph, dptr, call),
        None => free_address(dptr, call),
    }
}

pub(crate) unsafe fn cuMemFreeAsync(dptr: u64, hStream: sys::CUstream) -> CuResult {
    // SAFETY: the program's own arguments.
    let call = || unsafe { real::cuMemFreeAsync(dptr, hStream) };
    free_in_stream(dptr, hStream, StreamForm::Legacy, call)
}

pub(crate) unsafe fn cuMemFreeAsync_ptsz(dptr: u64, hStream: sys::CUstream) -> CuResult {
    // SAFETY: the program's own arguments.
    let call = || unsafe { real::cuMemFreeAsync_ptsz(dptr, hStream) };
    free_in_stream(dptr, hStream, StreamForm::PerThread, call)
}

// ---------------------------------------------------------------- arrays

pub(crate) unsafe fn cuArrayCreate(
    pHandle: *mut sys::CUarray,
    pAllocateArray: *const c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuArrayCreate(pHandle, pAllocateArray) }
}

pub(crate) unsafe fn cuArray3DCreate(
    pHandle: *mut sys::CUarray,
    pAllocateArray: *const c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuArray3DCreate(pHandle, pAllocateArray) }
}

pub(crate) unsafe fn cuArrayCreate_v2(
    pHandle: *mut sys::CUarray,
    pAllocateArray: *const sys::CUDA_ARRAY_DESCRIPTOR,
) -> CuResult {
    // SAFETY: the program's own arguments; fields are read one by one, the format as a number.
    unsafe {
        let bytes = match pAllocateArray.is_null() {
            true => 0,
            false => {
                let d = pAllocateArray;
                let format = (&raw const (*d).Format).cast::<c_uint>().read();
                array_bytes([(*d).Width, (*d).Height, 1], format, (*d).NumChannels, 1)
            }
        };
        allocate(
            "cuArrayCreate",
            bytes,
            pHandle,
            |array| Key::Array(array as usize),
            || real::cuArrayCreate_v2(pHandle, pAllocateArray),
        )
    }
}

pub(crate) unsafe fn cuArray3DCreate_v2(
    pHandle: *mut sys::CUarray,
    pAllocateArray: *const sys::CUDA_ARRAY3D_DESCRIPTOR,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        let bytes = bytes_3d(pAllocateArray, 1);
        allocate(
            "cuArray3DCreate",
            bytes,
            pHandle,
            |array| Key::Array(array as usize),
            || real::cuArray3DCreate_v2(pHandle, pAllocateArray),
        )
    }
}

pub(crate) unsafe fn cuArrayDestroy(hArray: sys::CUarray) -> CuResult {
    // SAFETY: the program's own argument.
    free(Key::Array(hArray as usize), || unsafe { real::cuArrayDestroy(hArray) })
}

pub(crate) unsafe fn cuMipmappedArrayCreate(
    pHandle: *mut sys::CUmipmappedArray,
    pMipmappedArrayDesc: *const sys::CUDA_ARRAY3D_DESCRIPTOR,
    numMipmapLevels: c_uint,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        let bytes = bytes_3d(pMipmappedArrayDesc, numMipmapLevels);
        allocate(
            "cuMipmappedArrayCreate",
            bytes,
            pHandle,
            |array| Key::Mipmap(array as usize),
            || real::cuMipmappedArrayCreate(pHandle, pMipmappedArrayDesc, numMipmapLevels),
        )
    }
}

pub(crate) unsafe fn cuMipmappedArrayDestroy(hMipmappedArray: sys::CUmipmappedArray) -> CuResult {
    // SAFETY: the program's own argument.
    free(Key::Mipmap(hMipmappedArray as usize), || unsafe {
        real::cuMipmappedArrayDestroy(hMipmappedArray)
    })
}

/// # Safety
/// `d` is NULL or a descriptor.
unsafe fn bytes_3d(d: *const sys::CUDA_ARRAY3D_DESCRIPTOR, levels: c_uint) -> u64 {
    if d.is_null() {
        return 0;
    }
    // SAFETY: not NULL; fields are read one by one, the format as a number.
    unsafe {
        // What is mapped later has no memory of its own.
        if (*d).Flags & (SPARSE | DEFERRED) != 0 {
            return 0;
        }
        let format = (&raw const (*d).Format).cast::<c_uint>().read();
        array_bytes([(*d).Width, (*d).Height, (*d).Depth], format, (*d).NumChannels, levels)
    }
}

/// An estimate: the driver's layout is its secret.
fn array_bytes(extent: [usize; 3], format: c_uint, channels: c_uint, levels: c_uint) -> u64 {
    // CU_AD_FORMAT_*: 1, 8: one byte; 2, 9, 16: two; 3, 10, 32: four; others have four at most.
    let element: u64 = match format {
        0x01 | 0x08 => 1,
        0x02 | 0x09 | 0x10 => 2,
        _ => 4,
    };
    let base = extent
        .iter()
        .map(|side| (*side as u64).max(1))
        .fold(element * u64::from(channels.max(1)), u64::saturating_mul);
    // All further levels of a mipmap together take less than another base.
    if levels > 1 { base.saturating_add(base / 2) } else { base }
}

// ---------------------------------------------------------------- questions

/// As if the client were alone on the GPU. Either pointer may be NULL.
/// Free and total bytes as this client is to see them, on a device of which the driver says that it
/// has `total`.
pub(crate) fn shown(device: i32, total: usize) -> Option<(usize, usize)> {
    let (free, all) = LEDGER.info(device)?;
    // A limit is what the client can have at most, hence all there is.
    let total = total.min(all as usize);
    let free = free.saturating_sub(PAGER.used(device as u32)) as usize;
    Some((free.min(total), total))
}

pub(crate) unsafe fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CuResult {
    let (mut real_free, mut real_total) = (0usize, 0usize);
    // SAFETY: two places on this stack.
    let result = unsafe { real::cuMemGetInfo_v2(&raw mut real_free, &raw mut real_total) };
    if result.is_success() {
        let own = current_device().and_then(|device| shown(device, real_total));
        let (own_free, real_total) = own.unwrap_or((real_free, real_total));
        // SAFETY: NULL, or a place of the program.
        unsafe {
            if !free.is_null() {
                free.write(own_free);
            }
            if !total.is_null() {
                total.write(real_total);
            }
        }
    }
    result
}

/// The same total: programs take shares of the one or of the other.
pub(crate) unsafe fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: c_int) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuDeviceTotalMem_v2(bytes, dev) };
    if result.is_success()
        && let Some((_, all)) = LEDGER.info(dev)
    {
        // SAFETY: the driver has just written there.
        unsafe { bytes.write(bytes.read().min(all as usize)) };
    }
    result
}

pub(crate) unsafe fn cuDeviceTotalMem(bytes: *mut c_uint, dev: c_int) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuDeviceTotalMem(bytes, dev) }
}

pub(crate) unsafe fn cuMemGetInfo(free: *mut c_uint, total: *mut c_uint) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemGetInfo(free, total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_the_driver_does() {
        assert_eq!(rounded(1), 512);
        assert_eq!(rounded(513), 1024);
        assert_eq!(rounded(3 << 20), 4 << 20);
        assert_eq!(rounded(u64::MAX), u64::MAX);
    }

    #[test]
    fn arrays_count_their_elements() {
        assert_eq!(array_bytes([10, 0, 0], 0x20, 4, 1), 160);
        assert_eq!(array_bytes([10, 10, 10], 0x10, 2, 1), 4000);
        assert_eq!(array_bytes([usize::MAX; 3], 0x20, 4, 9), u64::MAX);
    }
}
