//! Copies between GPUs that do not reach each other's memory.
//!
//! Owns: putting a call that names both contexts in place of one that names none. Does not own: which GPUs these are (`pager`), or
//! the gate (`submit`).
//!
//! The driver copies memory of its own allocations whatever device is current, through the host where it must. Mapped memory it
//! copies by a device that the memory is open to, or between contexts that the call names: "when p2p is not enabled, only
//! cudaMemcpyPeerAsync correctly handles memory not allocated via cudaMalloc", as PyTorch has it.
//!
//! Each function answers `None` where the program's own call will do.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::submit::pass;
use crate::pager::{Apart, PAGER};
use crate::table::real;
use crate::work::{PER_THREAD, with_context};
use acb_cuda_abi::{CuResult, sys};
use std::ffi::*;

/// `CU_MEMORYTYPE_DEVICE`, `CU_MEMORYTYPE_UNIFIED`
const DEVICE: c_uint = 2;
const UNIFIED: c_uint = 4;

const LEGACY: sys::CUstream = std::ptr::null_mut();

fn context(handle: usize) -> sys::CUcontext {
    handle as sys::CUcontext
}

/// Between two devices, or within one that is not the current one.
unsafe fn line(symbol: &'static str, to: u64, from: u64, bytes: usize) -> Option<CuResult> {
    let (there, here) = match PAGER.apart(to, from)? {
        Apart::Devices(there, here) => (there, here),
        Apart::Host(owner) => {
            // SAFETY: the program's own arguments.
            return Some(elsewhere(symbol, owner, || unsafe { real::cuMemcpy(to, from, bytes) }));
        }
    };
    // SAFETY: the program's own arguments, and the contexts of this memory.
    Some(pass(symbol, false, || unsafe {
        real::cuMemcpyPeer(to, context(there), from, context(here), bytes)
    }))
}

/// Memory of the host, and of a device that is not the current one: in that one's context, after what is before it here.
fn elsewhere(symbol: &'static str, owner: usize, call: impl Fn() -> CuResult) -> CuResult {
    pass(symbol, false, || {
        let stream = if symbol.ends_with("_ptds") { PER_THREAD as sys::CUstream } else { LEGACY };
        // SAFETY: a default stream of the current context.
        let before = unsafe { real::cuStreamSynchronize(stream) };
        if before.is_success() { with_context(owner, &call) } else { before }
    })
}

macro_rules! lines {
    ($($symbol:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(to: u64, from: u64, bytes: usize) -> Option<CuResult> {
            // SAFETY: the program's own arguments.
            unsafe { line(stringify!($symbol), to, from, bytes) }
        }
    )*};
}

lines! {
    cuMemcpy;
    cuMemcpy_ptds;
    cuMemcpyDtoD_v2;
    cuMemcpyDtoD_v2_ptds;
}

macro_rules! streamed_lines {
    ($($symbol:ident $peer:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(
            to: u64,
            from: u64,
            bytes: usize,
            stream: sys::CUstream,
        ) -> Option<CuResult> {
            let Apart::Devices(there, here) = PAGER.apart(to, from)? else { return None };
            // SAFETY: the program's own arguments, and the contexts of this memory.
            Some(pass(stringify!($symbol), true, || unsafe {
                real::$peer(to, context(there), from, context(here), bytes, stream)
            }))
        }
    )*};
}

streamed_lines! {
    cuMemcpyAsync cuMemcpyPeerAsync;
    cuMemcpyAsync_ptsz cuMemcpyPeerAsync_ptsz;
    cuMemcpyDtoDAsync_v2 cuMemcpyPeerAsync;
    cuMemcpyDtoDAsync_v2_ptsz cuMemcpyPeerAsync_ptsz;
}

macro_rules! with_host {
    ($($symbol:ident ($to:ident: $to_kind:ty, $from:ident: $from_kind:ty) $device:ident;)*) => {$(
        pub(crate) unsafe fn $symbol($to: $to_kind, $from: $from_kind, bytes: usize) -> Option<CuResult> {
            let owner = PAGER.owner_out_of_reach($device)?;
            // SAFETY: the program's own arguments.
            Some(elsewhere(stringify!($symbol), owner, || unsafe { real::$symbol($to, $from, bytes) }))
        }
    )*};
}

with_host! {
    cuMemcpyHtoD_v2(to: u64, from: *const c_void) to;
    cuMemcpyHtoD_v2_ptds(to: u64, from: *const c_void) to;
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64) from;
    cuMemcpyDtoH_v2_ptds(to: *mut c_void, from: u64) from;
}

/// A copy of rows and layers with the contexts of its ends; `None`: the program's own call will do.
///
/// # Safety
/// `shape` is NULL or a structure of the program's.
unsafe fn deep(shape: *const sys::CUDA_MEMCPY3D) -> Option<sys::CUDA_MEMCPY3D_PEER> {
    const { assert!(size_of::<sys::CUDA_MEMCPY3D>() == size_of::<sys::CUDA_MEMCPY3D_PEER>()) };
    if shape.is_null() {
        return None;
    }
    // SAFETY: not NULL. The two differ in reserved fields alone, which are the contexts'; kinds are read as numbers first.
    unsafe {
        let kind = |field: *const sys::CUmemorytype| field.cast::<c_uint>().read();
        let kinds =
            [kind(&raw const (*shape).srcMemoryType), kind(&raw const (*shape).dstMemoryType)];
        if !kinds.iter().all(|kind| matches!(*kind, DEVICE | UNIFIED)) {
            return None;
        }
        let Apart::Devices(there, here) = PAGER.apart((*shape).dstDevice, (*shape).srcDevice)?
        else {
            return None;
        };
        let mut peer = shape.cast::<sys::CUDA_MEMCPY3D_PEER>().read();
        peer.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        peer.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        (peer.srcContext, peer.dstContext) = (context(here), context(there));
        Some(peer)
    }
}

/// The same of rows alone: one layer of them.
///
/// # Safety
/// As above.
unsafe fn flat(shape: *const sys::CUDA_MEMCPY2D) -> Option<sys::CUDA_MEMCPY3D_PEER> {
    if shape.is_null() {
        return None;
    }
    // SAFETY: not NULL; zeros are good for every field. Kinds are copied as numbers.
    unsafe {
        let mut one: std::mem::MaybeUninit<sys::CUDA_MEMCPY3D> = std::mem::MaybeUninit::zeroed();
        let (from, to) = (&raw const *shape, one.as_mut_ptr());
        (*to).srcXInBytes = (*from).srcXInBytes;
        (*to).srcY = (*from).srcY;
        (&raw mut (*to).srcMemoryType)
            .cast::<c_uint>()
            .write((&raw const (*from).srcMemoryType).cast::<c_uint>().read());
        (*to).srcDevice = (*from).srcDevice;
        (*to).srcPitch = (*from).srcPitch;
        (*to).dstXInBytes = (*from).dstXInBytes;
        (*to).dstY = (*from).dstY;
        (&raw mut (*to).dstMemoryType)
            .cast::<c_uint>()
            .write((&raw const (*from).dstMemoryType).cast::<c_uint>().read());
        (*to).dstDevice = (*from).dstDevice;
        (*to).dstPitch = (*from).dstPitch;
        (*to).WidthInBytes = (*from).WidthInBytes;
        (*to).Height = (*from).Height;
        (*to).Depth = 1;
        deep(to)
    }
}

macro_rules! shapes {
    ($($symbol:ident $kind:ident $with:ident $peer:ident $asynchronous:literal ($($stream:ident)?);)*) => {$(
        pub(crate) unsafe fn $symbol(
            shape: *const sys::$kind,
            $($stream: sys::CUstream,)?
        ) -> Option<CuResult> {
            // SAFETY: the program's own arguments, with the contexts of this memory.
            unsafe {
                let peer = $with(shape)?;
                Some(pass(stringify!($symbol), $asynchronous, || {
                    real::$peer(&raw const peer, $($stream)?)
                }))
            }
        }
    )*};
}

shapes! {
    cuMemcpy2D_v2 CUDA_MEMCPY2D flat cuMemcpy3DPeer false ();
    cuMemcpy2D_v2_ptds CUDA_MEMCPY2D flat cuMemcpy3DPeer_ptds false ();
    cuMemcpy2DUnaligned_v2 CUDA_MEMCPY2D flat cuMemcpy3DPeer false ();
    cuMemcpy2DUnaligned_v2_ptds CUDA_MEMCPY2D flat cuMemcpy3DPeer_ptds false ();
    cuMemcpy2DAsync_v2 CUDA_MEMCPY2D flat cuMemcpy3DPeerAsync true (stream);
    cuMemcpy2DAsync_v2_ptsz CUDA_MEMCPY2D flat cuMemcpy3DPeerAsync_ptsz true (stream);
    cuMemcpy3D_v2 CUDA_MEMCPY3D deep cuMemcpy3DPeer false ();
    cuMemcpy3D_v2_ptds CUDA_MEMCPY3D deep cuMemcpy3DPeer_ptds false ();
    cuMemcpy3DAsync_v2 CUDA_MEMCPY3D deep cuMemcpy3DPeerAsync true (stream);
    cuMemcpy3DAsync_v2_ptsz CUDA_MEMCPY3D deep cuMemcpy3DPeerAsync_ptsz true (stream);
}

/// Forms of before CUDA 3.2, which give a program of this decade no memory.
macro_rules! old {
    ($($symbol:ident ($($kind:ty),*);)*) => {$(
        pub(crate) unsafe fn $symbol($(_: $kind),*) -> Option<CuResult> {
            None
        }
    )*};
}

old! {
    cuMemcpyDtoD(c_uint, c_uint, c_uint);
    cuMemcpyDtoDAsync(c_uint, c_uint, c_uint, sys::CUstream);
    cuMemcpyHtoD(c_uint, *const c_void, c_uint);
    cuMemcpyDtoH(*mut c_void, c_uint, c_uint);
    cuMemcpy2D(*const c_void);
    cuMemcpy2DUnaligned(*const c_void);
    cuMemcpy2DAsync(*const c_void, sys::CUstream);
    cuMemcpy3D(*const c_void);
    cuMemcpy3DAsync(*const c_void, sys::CUstream);
}
