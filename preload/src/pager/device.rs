//! The driver's calls that the pager makes, one function each.
//!
//! Owns: their C types and unsafe blocks. Does not own: when they are made, and what follows from their answers.
//! Copies and events belong to the calling thread's current context; the rest to the process.
#![allow(unsafe_code)] // FFI: calls to the driver with addresses and handles that the pager keeps.

use super::allocate::Failure;
use super::table::{Grant, Mapping};
use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ffi::{c_int, c_void};

/// What the driver answers; the handle or address it has made.
pub(crate) type Answer<T> = Result<T, CuResult>;

const ON_DEVICE: u32 = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE as u32;
pub(crate) const READ_WRITE: u32 =
    sys::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE as u32;
const NON_BLOCKING: u32 = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
const UNTIMED: u32 = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
const PORTABLE: u32 = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`
pub(crate) const FILE_DESCRIPTOR: u32 = 1;

fn answer<T>(result: CuResult, value: T) -> Answer<T> {
    if result.is_success() { Ok(value) } else { Err(result) }
}

/// Reading and writing by a device.
pub(crate) fn read_write(device: u32) -> Grant {
    (ON_DEVICE, device as i32, READ_WRITE)
}

/// Whether a device maps memory at all.
pub(crate) fn can_map(device: u32) -> bool {
    let attribute =
        sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
            as u32;
    let mut value = 0;
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuDeviceGetAttribute(&raw mut value, attribute, device as c_int) };
    result.is_success() && value != 0
}

/// Whether there are file descriptors of a device's memory.
pub(crate) fn has_descriptors(device: u32) -> bool {
    let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED as u32;
    let mut value = 0;
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuDeviceGetAttribute(&raw mut value, attribute, device as c_int) };
    result.is_success() && value != 0
}

/// Who can reach whose memory: by, and owner.
pub(crate) fn peers(devices: u32) -> Vec<(u32, u32)> {
    let all = (0..devices).flat_map(|by| (0..devices).map(move |owner| (by, owner)));
    let can = |(by, owner): &(u32, u32)| {
        let mut can = 0;
        // SAFETY: a place on this stack.
        let result =
            unsafe { real::cuDeviceCanAccessPeer(&raw mut can, *by as c_int, *owner as c_int) };
        result.is_success() && can != 0
    };
    all.filter(|(by, owner)| by != owner).filter(can).collect()
}

pub(crate) fn current_device() -> Option<u32> {
    let mut device: c_int = 0;
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuCtxGetDevice(&raw mut device) };
    result.is_success().then_some(device as u32)
}

/// Whether the context of a stream works.
pub(crate) fn state(stream: usize) -> CuResult {
    // SAFETY: a stream of the pager's; nothing is waited for.
    match unsafe { real::cuStreamQuery(stream as sys::CUstream) } {
        CuResult::NOT_READY => CuResult::SUCCESS,
        result => result,
    }
}

/// Waits for what is in a stream; only after a failure.
pub(crate) fn drain(stream: usize) {
    // SAFETY: a stream of the pager's.
    let _ = unsafe { real::cuStreamSynchronize(stream as sys::CUstream) };
}

/// Waits for all work of the current context.
pub(crate) fn synchronize() -> CuResult {
    // SAFETY: no arguments.
    unsafe { real::cuCtxSynchronize() }
}

/// The calling thread's calls do not spoil a capture from now on; the mode to restore.
pub(crate) fn relax_capture() -> u32 {
    exchange_capture(sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED as u32)
}

/// The driver may be called here though somebody captures.
pub(crate) fn relaxed<T>(call: impl FnOnce() -> T) -> T {
    let mode = relax_capture();
    let value = call();
    exchange_capture(mode);
    value
}

pub(crate) fn exchange_capture(mode: u32) -> u32 {
    let mut mode = mode;
    // SAFETY: a mode to exchange, on this stack. Drivers before 10.1 lack it, and captures.
    let _ = unsafe { real::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    mode
}

/// The context of a stream that the program has made; `None`: a default stream, or no stream.
pub(crate) fn context_of(stream: usize) -> Option<usize> {
    // 1 and 2 mean the default streams.
    if stream <= 2 {
        return None;
    }
    let mut context: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: the program's own stream, and a place on this stack.
    let result = unsafe { real::cuStreamGetCtx(stream as sys::CUstream, &raw mut context) };
    result.is_success().then_some(context as usize)
}

/// The pool from which a device's memory in stream order comes; `None`: the driver has no pools.
pub(crate) fn pool(device: u32) -> Option<u64> {
    let mut pool: sys::CUmemoryPool = std::ptr::null_mut();
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuDeviceGetMemPool(&raw mut pool, device as c_int) };
    result.is_success().then_some(pool as u64)
}

pub(crate) fn default_pool(device: u32) -> Option<u64> {
    let mut pool: sys::CUmemoryPool = std::ptr::null_mut();
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuDeviceGetDefaultMemPool(&raw mut pool, device as c_int) };
    result.is_success().then_some(pool as u64)
}

// ---------------------------------------------------------------- addresses and physical memory

pub(crate) fn reserve(bytes: u64) -> Answer<u64> {
    let mut address = 0;
    // SAFETY: a place on this stack; 0: any alignment, any address.
    let result = unsafe { real::cuMemAddressReserve(&raw mut address, bytes as usize, 0, 0, 0) };
    answer(result, address)
}

pub(crate) fn free_addresses(address: u64, bytes: u64) -> Answer<()> {
    // SAFETY: a range of `reserve` with nothing mapped in it.
    answer(unsafe { real::cuMemAddressFree(address, bytes as usize) }, ())
}

/// Who may reach memory, besides GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Nobody,
    /// Where the driver allows it.
    NetworkCards,
}

/// Physical memory on a device, of which handles of some types can be made.
pub(crate) fn create(device: u32, bytes: u64, handle_types: u32, reach: Reach) -> Answer<u64> {
    // SAFETY: a C structure for which zeros are right: no handle type, no flags.
    let mut prop: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    prop.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device as c_int;
    let types = (&raw mut prop.requestedHandleTypes).cast::<u32>();
    // SAFETY: a field of the structure on this stack; types are written as a number, for several may be wanted.
    unsafe { types.write(handle_types) };
    let mut make = |capable| {
        prop.allocFlags.gpuDirectRDMACapable = capable;
        let mut handle = 0;
        // SAFETY: places on this stack.
        let result =
            unsafe { real::cuMemCreate(&raw mut handle, bytes as usize, &raw const prop, 0) };
        answer(result, handle)
    };
    match reach {
        Reach::NetworkCards => make(1).or_else(|result| match result {
            CuResult::OUT_OF_MEMORY => Err(result),
            _ => make(0),
        }),
        Reach::Nobody => make(0),
    }
}

pub(crate) fn release(handle: u64) -> Answer<()> {
    // SAFETY: a handle of `create`, given up by its owner.
    answer(unsafe { real::cuMemRelease(handle) }, ())
}

/// A descriptor of memory that was made for it.
pub(crate) fn descriptor(handle: u64) -> Answer<OwnedFd> {
    let mut number: c_int = -1;
    // SAFETY: a live handle, and a place on this stack for a number.
    let result = unsafe {
        real::cuMemExportToShareableHandle((&raw mut number).cast(), handle, FILE_DESCRIPTOR, 0)
    };
    answer(result, ())?;
    // SAFETY: the driver has just made it for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The memory behind another process's descriptor.
pub(crate) fn import(descriptor: &OwnedFd) -> Answer<u64> {
    let mut handle = 0;
    // The descriptor itself, in place of a pointer.
    let from = std::ptr::without_provenance_mut(descriptor.as_raw_fd() as usize);
    // SAFETY: a place on this stack, and an open descriptor.
    let result =
        unsafe { real::cuMemImportFromShareableHandle(&raw mut handle, from, FILE_DESCRIPTOR) };
    answer(result, handle)
}

/// Whose memory it is.
pub(crate) fn device_of(handle: u64) -> Option<u32> {
    // SAFETY: a C structure for which zeros are right.
    let mut prop: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    // SAFETY: a live handle, and a place on this stack.
    let result = unsafe { real::cuMemGetAllocationPropertiesFromHandle(&raw mut prop, handle) };
    result.is_success().then_some(prop.location.id as u32)
}

pub(crate) fn map(address: u64, bytes: u64, offset: u64, handle: u64) -> Answer<()> {
    // SAFETY: a reserved range with nothing there; a live handle. What is wrong with them the driver says.
    let result = unsafe { real::cuMemMap(address, bytes as usize, offset as usize, handle, 0) };
    answer(result, ())
}

pub(crate) fn unmap(address: u64, bytes: u64) -> Answer<()> {
    // SAFETY: a mapped range on which nothing runs any more.
    answer(unsafe { real::cuMemUnmap(address, bytes as usize) }, ())
}

pub(crate) fn open(address: u64, bytes: u64, grants: &[Grant]) -> Answer<()> {
    // The structure as numbers, which may be newer than their enums here: kind and number of a location, flags.
    let descriptions: Vec<[u32; 3]> =
        grants.iter().map(|(k, id, f)| [*k, *id as u32, *f]).collect();
    const { assert!(size_of::<sys::CUmemAccessDesc>() == size_of::<[u32; 3]>()) };
    // SAFETY: a mapped range; descriptions of the driver's layout, which live through the call.
    let result = unsafe {
        real::cuMemSetAccess(
            address,
            bytes as usize,
            descriptions.as_ptr().cast(),
            descriptions.len(),
        )
    };
    answer(result, ())
}

/// Addresses through which a chunk's content can be copied: its own, or others for the time of the copy.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) address: u64,
    after: After,
}

#[derive(Debug)]
enum After {
    Nothing,
    /// Mapped for the copy alone.
    Unmap(u64),
    /// Opened to its own device for the copy alone: what the program had granted.
    Restore(u64, Vec<Grant>),
}

impl Window {
    /// To a chunk with these mappings.
    pub(crate) fn to(
        device: u32,
        bytes: u64,
        handle: u64,
        mappings: &[Mapping],
    ) -> Result<Self, Failure> {
        let own = read_write(device);
        let whole =
            || mappings.iter().filter(|mapping| mapping.offset == 0 && mapping.bytes == bytes);
        let is_open = |mapping: &&Mapping| mapping.access.as_ref().is_none_or(|a| a.contains(&own));
        if let Some(mapping) = whole().find(is_open) {
            return Ok(Window { address: mapping.address, after: After::Nothing });
        }
        let Some(mapping) = whole().next() else { return Window::scratch(device, bytes, handle) };
        open(mapping.address, mapping.bytes, &[own])
            .map_err(|result| ("cuMemSetAccess", result))?;
        let (kind, id, _) = own;
        let mut grants = mapping.access.clone().unwrap_or_default();
        if !grants.iter().any(|(k, i, _)| (*k, *i) == (kind, id)) {
            grants.push((kind, id, 0));
        }
        Ok(Window { address: mapping.address, after: After::Restore(bytes, grants) })
    }

    /// To a chunk that is mapped nowhere.
    pub(crate) fn scratch(device: u32, bytes: u64, handle: u64) -> Result<Self, Failure> {
        let address = reserve(bytes).map_err(|result| ("cuMemAddressReserve", result))?;
        let mapped = map(address, bytes, 0, handle).map_err(|result| ("cuMemMap", result));
        let mapped = mapped.and_then(|()| {
            open(address, bytes, &[read_write(device)]).map_err(|result| {
                let _ = unmap(address, bytes);
                ("cuMemSetAccess", result)
            })
        });
        mapped.inspect_err(|_| {
            let _ = free_addresses(address, bytes);
        })?;
        Ok(Window { address, after: After::Unmap(bytes) })
    }

    /// The copy is done.
    pub(crate) fn close(self) {
        match self.after {
            After::Nothing => {}
            After::Unmap(bytes) => {
                let _ = unmap(self.address, bytes);
                let _ = free_addresses(self.address, bytes);
            }
            After::Restore(bytes, grants) => {
                let _ = open(self.address, bytes, &grants);
            }
        }
    }
}

// ---------------------------------------------------------------- streams, events, copies

pub(crate) fn stream() -> Answer<usize> {
    let mut stream: sys::CUstream = std::ptr::null_mut();
    // SAFETY: a place on this stack, under a current context.
    let result = unsafe { real::cuStreamCreate(&raw mut stream, NON_BLOCKING) };
    answer(result, stream as usize)
}

pub(crate) fn destroy_stream(stream: usize) {
    // SAFETY: a stream of the pager's with nothing in it.
    let _ = unsafe { real::cuStreamDestroy_v2(stream as sys::CUstream) };
}

pub(crate) fn event() -> Answer<usize> {
    let mut event: sys::CUevent = std::ptr::null_mut();
    // SAFETY: a place on this stack, under a current context.
    let result = unsafe { real::cuEventCreate(&raw mut event, UNTIMED) };
    answer(result, event as usize)
}

pub(crate) fn record(event: usize, stream: usize) -> Answer<()> {
    // SAFETY: an event and a stream of one context, which is not destroyed while the pager works in it.
    answer(unsafe { real::cuEventRecord(event as sys::CUevent, stream as sys::CUstream) }, ())
}

/// Whether an event has come; an error is the broken context's.
pub(crate) fn has_come(event: usize) -> Answer<bool> {
    // SAFETY: an event of the pager's, whose context lives.
    match unsafe { real::cuEventQuery(event as sys::CUevent) } {
        CuResult::NOT_READY => Ok(false),
        result => answer(result, true),
    }
}

pub(crate) fn wait_for(event: usize) -> CuResult {
    // SAFETY: as above.
    unsafe { real::cuEventSynchronize(event as sys::CUevent) }
}

pub(crate) fn destroy_event(event: usize) {
    // SAFETY: an event of the pager's that nobody else knows.
    let _ = unsafe { real::cuEventDestroy_v2(event as sys::CUevent) };
}

pub(crate) fn copy_in(to: u64, from: usize, bytes: u64, stream: usize) -> Answer<()> {
    // SAFETY: a mapped range of the pager's; a place in the arena that nobody gives back before the copy is done.
    let result = unsafe {
        real::cuMemcpyHtoDAsync_v2(
            to,
            from as *const c_void,
            bytes as usize,
            stream as sys::CUstream,
        )
    };
    answer(result, ())
}

pub(crate) fn copy_out(to: usize, from: u64, bytes: u64, stream: usize) -> Answer<()> {
    // SAFETY: as above.
    let result = unsafe {
        real::cuMemcpyDtoHAsync_v2(to as *mut c_void, from, bytes as usize, stream as sys::CUstream)
    };
    answer(result, ())
}

pub(crate) fn clear(address: u64, bytes: u64, stream: usize) -> Answer<()> {
    // SAFETY: memory of the pager's own.
    let result =
        unsafe { real::cuMemsetD8Async(address, 0, bytes as usize, stream as sys::CUstream) };
    answer(result, ())
}

// ---------------------------------------------------------------- memory of the pager's own

/// Plain device memory, for results of kernels.
pub(crate) fn allocate(bytes: u64) -> Answer<u64> {
    let mut address = 0;
    // SAFETY: a place on this stack.
    answer(unsafe { real::cuMemAlloc_v2(&raw mut address, bytes as usize) }, address)
}

/// What is free on the current context's device, as the driver says.
pub(crate) fn free_memory() -> Option<u64> {
    let (mut free, mut total) = (0_usize, 0_usize);
    // SAFETY: places on this stack.
    let result = unsafe { real::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
    result.is_success().then_some(free as u64)
}

pub(crate) fn free(address: u64) {
    // SAFETY: memory of `allocate` that nothing uses.
    let _ = unsafe { real::cuMemFree_v2(address) };
}

/// Pinned host memory of the current context.
pub(crate) fn allocate_host(bytes: u64) -> Answer<usize> {
    let mut address: *mut c_void = std::ptr::null_mut();
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuMemHostAlloc(&raw mut address, bytes as usize, PORTABLE) };
    answer(result, address as usize)
}

pub(crate) fn free_host(address: usize) {
    // SAFETY: memory of `allocate_host` that nothing uses.
    let _ = unsafe { real::cuMemFreeHost(address as *mut c_void) };
}

/// Two words of host memory that a copy has written.
pub(crate) fn read_host(address: usize) -> [u64; 2] {
    // SAFETY: inside memory of `allocate_host`, which no copy is writing now.
    unsafe { (address as *const [u64; 2]).read_volatile() }
}

/// Whether two copies are alike, each in pieces of host memory.
pub(crate) fn are_alike(a: &[(usize, u64)], b: &[(usize, u64)]) -> bool {
    let bytes = |pieces: &[(usize, u64)]| -> Vec<&'static [u8]> {
        let pieces = pieces.iter();
        // SAFETY: places in the arena that the caller holds while it compares, and that no copy is writing now.
        pieces
            .map(|(at, bytes)| unsafe {
                std::slice::from_raw_parts(*at as *const u8, *bytes as usize)
            })
            .collect()
    };
    let (a, b) = (bytes(a), bytes(b));
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let (mut left, mut right): (&[u8], &[u8]) = (&[], &[]);
    loop {
        if left.is_empty() {
            left = a.next().unwrap_or_default();
        }
        if right.is_empty() {
            right = b.next().unwrap_or_default();
        }
        let length = left.len().min(right.len());
        if length == 0 {
            return left.is_empty() && right.is_empty();
        }
        if left[..length] != right[..length] {
            return false;
        }
        (left, right) = (&left[length..], &right[length..]);
    }
}

/// Pins host memory for all contexts, as long as the current one lives.
pub(crate) fn pin(address: usize, bytes: u64) -> Answer<()> {
    // SAFETY: memory of the arena's own.
    let result =
        unsafe { real::cuMemHostRegister_v2(address as *mut c_void, bytes as usize, PORTABLE) };
    answer(result, ())
}

pub(crate) fn unpin(address: usize) -> Answer<()> {
    // SAFETY: memory that `pin` has pinned.
    answer(unsafe { real::cuMemHostUnregister(address as *mut c_void) }, ())
}

/// Loads a module from PTX that ends in NUL.
pub(crate) fn load(ptx: &'static str) -> Answer<usize> {
    let mut module: sys::CUmodule = std::ptr::null_mut();
    // SAFETY: text that ends in NUL; a place on this stack.
    let loaded = unsafe { real::cuModuleLoadData(&raw mut module, ptx.as_ptr().cast::<c_void>()) };
    answer(loaded, module as usize)
}

/// A function in it.
pub(crate) fn function(module: usize, name: &std::ffi::CStr) -> Answer<usize> {
    let mut function: sys::CUfunction = std::ptr::null_mut();
    // SAFETY: a module of `load`; a name that ends in NUL.
    let found = unsafe {
        real::cuModuleGetFunction(&raw mut function, module as sys::CUmodule, name.as_ptr())
    };
    answer(found, function as usize)
}

pub(crate) fn unload(module: usize) {
    // SAFETY: a module of `load` of which nothing runs.
    let _ = unsafe { real::cuModuleUnload(module as sys::CUmodule) };
}

/// Launches a kernel whose parameters are 64 bits wide.
pub(crate) fn launch(
    function: usize,
    blocks: u32,
    threads: u32,
    stream: usize,
    parameters: &mut [u64],
) -> Answer<()> {
    let mut places: Vec<*mut c_void> =
        parameters.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
    // SAFETY: a function of the pager's own module; as many parameters as it has, which the driver copies.
    let result = unsafe {
        real::cuLaunchKernel(
            function as sys::CUfunction,
            blocks,
            1,
            1,
            threads,
            1,
            1,
            0,
            stream as sys::CUstream,
            places.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    };
    answer(result, ())
}

/// Whether an answer means that the context is broken for good, so that nothing can be moved through it.
pub(crate) fn is_lost(result: CuResult) -> bool {
    use sys::cudaError_enum as E;
    let lost = [
        E::CUDA_ERROR_ILLEGAL_ADDRESS,
        E::CUDA_ERROR_LAUNCH_FAILED,
        E::CUDA_ERROR_LAUNCH_TIMEOUT,
        E::CUDA_ERROR_HARDWARE_STACK_ERROR,
        E::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        E::CUDA_ERROR_MISALIGNED_ADDRESS,
        E::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        E::CUDA_ERROR_INVALID_PC,
        E::CUDA_ERROR_ASSERT,
        E::CUDA_ERROR_ECC_UNCORRECTABLE,
        E::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        E::CUDA_ERROR_CONTAINED,
        E::CUDA_ERROR_EXTERNAL_DEVICE,
        E::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        E::CUDA_ERROR_DEINITIALIZED,
    ];
    lost.into_iter().any(|code| result == CuResult(code as u32))
}

/// Whether it means that a kernel or a copy has failed in the context, which answers the same for ever.
pub(crate) fn is_fault(result: CuResult) -> bool {
    use sys::cudaError_enum as E;
    let gone = [E::CUDA_ERROR_CONTEXT_IS_DESTROYED, E::CUDA_ERROR_DEINITIALIZED];
    is_lost(result) && gone.into_iter().all(|code| result != CuResult(code as u32))
}

/// NVIDIA's name of a code, or its number.
pub(crate) fn name(result: CuResult) -> String {
    result.name().map_or_else(|| format!("error {}", result.0), str::to_owned)
}
