//! Copies.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_void;
use std::sync::Arc;

use acb_cuda_abi::{CuResult, StreamForm, sys};
use simcuda_device::fault::FaultKind;
use simcuda_device::layout::EngineKind;

use super::shape::{End, Request, deep, flat, inside};
use crate::code::{INVALID_VALUE, Outcome, UNKNOWN};
use crate::driver::{self, Driver};
use crate::handles::Handle;
use crate::kernels::span;
use crate::objects::Stream;
use crate::space::{Access, RegionKind, Space};
use crate::timeline::Submission;
use crate::work::{CopyShape, Side, Work};

/// Copies from pageable memory up to this size are taken along at once.
const STAGED: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq)]
enum When {
    /// The call returns when it is done.
    Now,
    /// The call returns at once, where the memory allows it.
    Later,
}

stream_calls! {
    fn cuMemcpyHtoD_v2 cuMemcpyHtoD_v2_ptds [form] (to: u64, from: *const c_void, bytes: usize) {
        let request = Request::line(End::Device(to), End::Host(from as u64), bytes);
        copy(request, 0, form, When::Now)
    }

    fn cuMemcpyDtoH_v2 cuMemcpyDtoH_v2_ptds [form] (to: *mut c_void, from: u64, bytes: usize) {
        let request = Request::line(End::Host(to as u64), End::Device(from), bytes);
        copy(request, 0, form, When::Now)
    }

    fn cuMemcpyDtoD_v2 cuMemcpyDtoD_v2_ptds [form] (to: u64, from: u64, bytes: usize) {
        let request = Request::line(End::Device(to), End::Device(from), bytes);
        // Inside a device the host is not waited for.
        copy(request, 0, form, When::Later)
    }

    fn cuMemcpy cuMemcpy_ptds [form] (to: u64, from: u64, bytes: usize) {
        copy(Request::line(End::Either(to), End::Either(from), bytes), 0, form, When::Now)
    }

    fn cuMemcpyPeer cuMemcpyPeer_ptds [form] (
        to: u64,
        to_context: sys::CUcontext,
        from: u64,
        from_context: sys::CUcontext,
        bytes: usize,
    ) {
        let by = By::contexts(to_context, from_context)?;
        let request = Request::line(End::Device(to), End::Device(from), bytes);
        copy_by(Some(by), request, 0, form, When::Later)
    }

    fn cuMemcpyHtoDAsync_v2 cuMemcpyHtoDAsync_v2_ptsz [form] (
        to: u64,
        from: *const c_void,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let request = Request::line(End::Device(to), End::Host(from as u64), bytes);
        copy(request, stream as u64, form, When::Later)
    }

    fn cuMemcpyDtoHAsync_v2 cuMemcpyDtoHAsync_v2_ptsz [form] (
        to: *mut c_void,
        from: u64,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let request = Request::line(End::Host(to as u64), End::Device(from), bytes);
        copy(request, stream as u64, form, When::Later)
    }

    fn cuMemcpyDtoDAsync_v2 cuMemcpyDtoDAsync_v2_ptsz [form] (
        to: u64,
        from: u64,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let request = Request::line(End::Device(to), End::Device(from), bytes);
        copy(request, stream as u64, form, When::Later)
    }

    fn cuMemcpyAsync cuMemcpyAsync_ptsz [form] (
        to: u64,
        from: u64,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let request = Request::line(End::Either(to), End::Either(from), bytes);
        copy(request, stream as u64, form, When::Later)
    }

    fn cuMemcpyPeerAsync cuMemcpyPeerAsync_ptsz [form] (
        to: u64,
        to_context: sys::CUcontext,
        from: u64,
        from_context: sys::CUcontext,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let by = By::contexts(to_context, from_context)?;
        let request = Request::line(End::Device(to), End::Device(from), bytes);
        copy_by(Some(by), request, stream as u64, form, When::Later)
    }

    fn cuMemcpy2D_v2 cuMemcpy2D_v2_ptds [form] (shape: *const sys::CUDA_MEMCPY2D) {
        copy(flat(shape)?, 0, form, When::Now)
    }

    fn cuMemcpy2DUnaligned_v2 cuMemcpy2DUnaligned_v2_ptds [form] (
        shape: *const sys::CUDA_MEMCPY2D,
    ) {
        copy(flat(shape)?, 0, form, When::Now)
    }

    fn cuMemcpy2DAsync_v2 cuMemcpy2DAsync_v2_ptsz [form] (
        shape: *const sys::CUDA_MEMCPY2D,
        stream: sys::CUstream,
    ) {
        copy(flat(shape)?, stream as u64, form, When::Later)
    }

    fn cuMemcpy3D_v2 cuMemcpy3D_v2_ptds [form] (shape: *const sys::CUDA_MEMCPY3D) {
        copy(deep(shape)?, 0, form, When::Now)
    }

    fn cuMemcpy3DAsync_v2 cuMemcpy3DAsync_v2_ptsz [form] (
        shape: *const sys::CUDA_MEMCPY3D,
        stream: sys::CUstream,
    ) {
        copy(deep(shape)?, stream as u64, form, When::Later)
    }

    fn cuMemcpy3DPeer cuMemcpy3DPeer_ptds [form] (shape: *const sys::CUDA_MEMCPY3D_PEER) {
        copy_by(Some(By::of(shape)?), deep(peers(shape))?, 0, form, When::Later)
    }

    fn cuMemcpy3DPeerAsync cuMemcpy3DPeerAsync_ptsz [form] (
        shape: *const sys::CUDA_MEMCPY3D_PEER,
        stream: sys::CUstream,
    ) {
        copy_by(Some(By::of(shape)?), deep(peers(shape))?, stream as u64, form, When::Later)
    }

    fn cuMemcpyHtoA_v2 cuMemcpyHtoA_v2_ptds [form] (
        to: sys::CUarray,
        offset: usize,
        from: *const c_void,
        bytes: usize,
    ) {
        let request = Request::line(inside(to, offset)?, End::Host(from as u64), bytes);
        copy(request, 0, form, When::Now)
    }

    fn cuMemcpyAtoH_v2 cuMemcpyAtoH_v2_ptds [form] (
        to: *mut c_void,
        from: sys::CUarray,
        offset: usize,
        bytes: usize,
    ) {
        let request = Request::line(End::Host(to as u64), inside(from, offset)?, bytes);
        copy(request, 0, form, When::Now)
    }

    fn cuMemcpyHtoAAsync_v2 cuMemcpyHtoAAsync_v2_ptsz [form] (
        to: sys::CUarray,
        offset: usize,
        from: *const c_void,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let request = Request::line(inside(to, offset)?, End::Host(from as u64), bytes);
        copy(request, stream as u64, form, When::Later)
    }

    fn cuMemcpyAtoHAsync_v2 cuMemcpyAtoHAsync_v2_ptsz [form] (
        to: *mut c_void,
        from: sys::CUarray,
        offset: usize,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        let request = Request::line(End::Host(to as u64), inside(from, offset)?, bytes);
        copy(request, stream as u64, form, When::Later)
    }

    fn cuMemcpyDtoA_v2 cuMemcpyDtoA_v2_ptds [form] (
        to: sys::CUarray,
        offset: usize,
        from: u64,
        bytes: usize,
    ) {
        let request = Request::line(inside(to, offset)?, End::Device(from), bytes);
        copy(request, 0, form, When::Later)
    }

    fn cuMemcpyAtoD_v2 cuMemcpyAtoD_v2_ptds [form] (
        to: u64,
        from: sys::CUarray,
        offset: usize,
        bytes: usize,
    ) {
        let request = Request::line(End::Device(to), inside(from, offset)?, bytes);
        copy(request, 0, form, When::Later)
    }

    fn cuMemcpyAtoA_v2 cuMemcpyAtoA_v2_ptds [form] (
        to: sys::CUarray,
        to_offset: usize,
        from: sys::CUarray,
        from_offset: usize,
        bytes: usize,
    ) {
        let request = Request::line(inside(to, to_offset)?, inside(from, from_offset)?, bytes);
        copy(request, 0, form, When::Later)
    }

    fn cuMemcpyBatchAsync cuMemcpyBatchAsync_ptsz [form] (
        to: *mut u64,
        from: *mut u64,
        sizes: *mut usize,
        count: usize,
        attributes: *mut sys::CUmemcpyAttributes,
        indices: *mut usize,
        attribute_count: usize,
        failed: *mut usize,
        stream: sys::CUstream,
    ) {
        // No single copy is to blame.
        super::put_wanted(failed, usize::MAX);
        if form == StreamForm::Legacy {
            cuMemcpyBatchAsync_v2(
                to, from, sizes, count, attributes, indices, attribute_count, stream,
            )
        } else {
            cuMemcpyBatchAsync_v2_ptsz(
                to, from, sizes, count, attributes, indices, attribute_count, stream,
            )
        }
    }

    fn cuMemcpyBatchAsync_v2 cuMemcpyBatchAsync_v2_ptsz [form] (
        to: *mut u64,
        from: *mut u64,
        sizes: *mut usize,
        count: usize,
        attributes: *mut sys::CUmemcpyAttributes,
        indices: *mut usize,
        attribute_count: usize,
        stream: sys::CUstream,
    ) {
        let none = to.is_null() || from.is_null() || sizes.is_null() || count == 0;
        let unsaid = attributes.is_null() || indices.is_null();
        let unsaid = unsaid || attribute_count == 0 || attribute_count > count;
        // The legacy stream does not take batches.
        let legacy = matches!((stream as u64, form), (1, _) | (0, StreamForm::Legacy));
        if none || unsaid || legacy {
            driver::get()?;
            return Err(INVALID_VALUE);
        }
        for at in 0..count {
            let (to, from) = (End::Either(to.add(at).read()), End::Either(from.add(at).read()));
            let request = Request::line(to, from, sizes.add(at).read());
            copy(request, stream as u64, form, When::Later)?;
        }
        Ok(())
    }
}

/// Between contexts the structure has them where others have reserved fields.
fn peers(shape: *const sys::CUDA_MEMCPY3D_PEER) -> *const sys::CUDA_MEMCPY3D {
    const { assert!(size_of::<sys::CUDA_MEMCPY3D_PEER>() == size_of::<sys::CUDA_MEMCPY3D>()) };
    shape.cast()
}

/// Through which GPU each end of a copy is reached, where the copying one does not reach it: to, and from.
#[derive(Clone, Copy)]
struct By {
    to: usize,
    from: usize,
}

impl By {
    /// By contexts that a call names; null: the current one.
    fn contexts(to: sys::CUcontext, from: sys::CUcontext) -> Outcome<By> {
        let driver = driver::get()?;
        let tables = driver.lock();
        let gpu = |context: sys::CUcontext| match context.is_null() {
            true => Ok(tables.context(driver.current(&tables)?)?.gpu),
            false => Ok(tables.context(Handle::from_bits(context as u64))?.gpu),
        };
        Ok(By { to: gpu(to)?, from: gpu(from)? })
    }

    /// # Safety
    /// `shape` is null or the structure that it should be.
    unsafe fn of(shape: *const sys::CUDA_MEMCPY3D_PEER) -> Outcome<By> {
        if shape.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null; fields are read one by one.
        unsafe { By::contexts((*shape).dstContext, (*shape).srcContext) }
    }
}

/// An end, looked up.
enum Place {
    Pageable(u64),
    Pinned(u64),
    Device { address: u64, gpu: usize },
}

/// Finds where an end lies; what is no memory of its kind is refused. The copy is
/// one of context's on `gpu`. Allocations elsewhere are reached through their own GPU; memory that was mapped, and that of pools,
/// only by whom it is open to: the copying GPU, or the one that the call is judged `by`.
fn place(
    space: &Space,
    end: End,
    span: usize,
    (gpu, by): (usize, usize),
    access: Access,
) -> Outcome<Place> {
    let (address, must_be_device) = match end {
        End::Host(address) => {
            if address == 0 {
                return Err(INVALID_VALUE);
            }
            if space.region_of(address).is_none() {
                return Ok(match space.host_of(address) {
                    Some(_) => Place::Pinned(address),
                    None => Place::Pageable(address),
                });
            }
            // A device pointer where the host's is due: unified addressing takes it.
            (address, true)
        }
        End::Device(address) => (address, true),
        End::Either(address) => (address, false),
    };
    if address == 0 {
        return Err(INVALID_VALUE);
    }
    if let Some((start, range)) = space.host_of(address) {
        let end = address.checked_add(span as u64).ok_or(INVALID_VALUE)?;
        return if end <= start + range.length as u64 {
            Ok(Place::Pinned(address))
        } else {
            Err(INVALID_VALUE)
        };
    }
    if space.region_of(address).is_none() {
        return if must_be_device { Err(INVALID_VALUE) } else { Ok(Place::Pageable(address)) };
    }
    if let Some((start, region)) = space.region_of(address)
        && let RegionKind::Graph { gpu } = region.kind
    {
        // What lies behind it comes when its graph runs.
        let end = address.checked_add(span as u64).ok_or(INVALID_VALUE)?;
        return if end <= start + region.length as u64 {
            Ok(Place::Device { address, gpu })
        } else {
            Err(INVALID_VALUE)
        };
    }
    let own = space.memory_at(address).ok_or(INVALID_VALUE)?.gpu();
    let kind = space.region_of(address).map(|(_, region)| region.kind);
    let else_by = match kind {
        Some(RegionKind::Reservation | RegionKind::Pooled { .. }) => by,
        _ => own,
    };
    let is_open = |gpu: &usize| space.segments(*gpu, address, span, access).is_some();
    let gpu = [gpu, else_by].into_iter().find(is_open).ok_or(INVALID_VALUE)?;
    Ok(Place::Device { address, gpu })
}

/// A few bytes of memory that a GPU reaches, or of the host's that it may.
pub(super) fn reached(
    space: &Space,
    address: u64,
    bytes: usize,
    gpu: usize,
    access: Access,
) -> Outcome<Side> {
    match place(space, End::Either(address), bytes, (gpu, gpu), access)? {
        Place::Device { address, gpu } => Ok(Side::Device { address, gpu }),
        Place::Pinned(address) => Ok(Side::Host(address)),
        Place::Pageable(_) => Err(INVALID_VALUE),
    }
}

fn copy(request: Request, stream: u64, form: StreamForm, when: When) -> Outcome {
    copy_by(None, request, stream, form, when)
}

/// `by`: for what call names contexts; else it is the current one.
fn copy_by(by: Option<By>, request: Request, stream: u64, form: StreamForm, when: When) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream, form)?;
    let gpu = tables.gpu_of(stream)?;
    let current = driver.current(&tables).and_then(|context| Ok(tables.context(context)?.gpu));
    let current = current.unwrap_or(gpu);
    let by = by.unwrap_or(By { to: current, from: current });
    if request.extent.total() == 0 {
        return Ok(());
    }
    let mut captures = false;
    if tables.captures.any() {
        tables.check_legacy(stream)?;
        captures = tables.recording(stream)?.is_some();
        if when == When::Now {
            tables.check_waitable(stream)?;
            tables.check_unsafe(driver::caller())?;
        }
    }
    let (to, from) = places(&tables.space, &request, gpu, by)?;
    if captures {
        // What the host's memory holds counts when the graph runs.
        let submission = shaped(driver, &request, gpu, (to, from), None);
        return driver.submit(tables, stream, submission, &[]).map(drop);
    }
    if matches!((&to, &from), (Place::Pageable(_), Place::Pageable(_) | Place::Pinned(_)))
        || matches!((&to, &from), (Place::Pinned(_), Place::Pageable(_)))
    {
        // From host to host the caller's processor does it, when its turn has come.
        let tails = tables.tails(stream);
        tables = driver
            .wait(tables, |tables| tails.iter().all(|&tail| !tables.timeline.is_pending(tail)));
    }
    let mut waits = when == When::Now || matches!(to, Place::Pageable(_));
    let mut staged = None;
    if let Place::Pageable(address) = from
        && !waits
    {
        let span = request.extent.span(request.from_pitch);
        if span <= STAGED {
            let mut bytes = vec![0_u8; span];
            // SAFETY: the program vouches for its own memory, of this length.
            unsafe {
                std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), span);
            }
            staged = Some(Arc::from(bytes));
        } else {
            waits = true;
        }
    }
    let mut submission = shaped(driver, &request, gpu, (to, from), staged);
    if let Work::Copy(shape) = &mut submission.work {
        let call = shape.as_call();
        if let Some(rule) = driver.faults.strike(FaultKind::CopyRefused, call) {
            return Err(rule.error.map_or(UNKNOWN, CuResult));
        }
        shape.fails = driver.faults.strike(FaultKind::CopyFails, call).is_some();
    }
    hand_in(driver, tables, stream, submission, waits)
}

/// Where a copy goes to, and where it comes from.
fn places(space: &Space, request: &Request, gpu: usize, by: By) -> Outcome<(Place, Place)> {
    let to_span = request.extent.span(request.to_pitch);
    let from_span = request.extent.span(request.from_pitch);
    let to = place(space, request.to, to_span, (gpu, by.to), Access::Write)?;
    Ok((to, place(space, request.from, from_span, (gpu, by.from), Access::Read)?))
}

/// The copy as work.
fn shaped(
    driver: &Driver,
    request: &Request,
    gpu: usize,
    (to, from): (Place, Place),
    staged: Option<Arc<[u8]>>,
) -> Submission {
    let (engine, length) = cost(driver, gpu, &to, &from, request.extent.total());
    let side = |place: Place| match place {
        Place::Device { address, gpu } => Side::Device { address, gpu },
        Place::Pinned(address) | Place::Pageable(address) => Side::Host(address),
    };
    let shape = CopyShape {
        from: staged.map_or_else(|| side(from), Side::Staged),
        to: side(to),
        from_pitch: request.from_pitch,
        to_pitch: request.to_pitch,
        extent: request.extent,
        fails: false,
    };
    Submission { engine, gpu, length, work: Work::Copy(Box::new(shape)) }
}

/// A copy as a node of a graph.
///
/// # Safety
/// `shape` is null or the structure that it should be.
pub(super) unsafe fn node(
    driver: &Driver,
    space: &Space,
    gpu: usize,
    shape: *const sys::CUDA_MEMCPY3D,
) -> Outcome<Submission> {
    // SAFETY: the caller vouches for it.
    let request = unsafe { deep(shape) }?;
    if request.extent.total() == 0 {
        return Err(INVALID_VALUE);
    }
    let places = places(space, &request, gpu, By { to: gpu, from: gpu })?;
    Ok(shaped(driver, &request, gpu, places, None))
}

/// Hands a copy or fill in; waits for it where the call does.
pub(super) fn hand_in(
    driver: &'static Driver,
    tables: driver::Locked<'static>,
    stream: Handle<Stream>,
    submission: Submission,
    waits: bool,
) -> Outcome {
    if waits {
        driver.submit_and_wait(tables, stream, submission)
    } else {
        driver.submit(tables, stream, submission, &[]).map(drop)
    }
}

/// Which engine a copy takes, and for how long.
fn cost(
    driver: &Driver,
    gpu: usize,
    to: &Place,
    from: &Place,
    bytes: usize,
) -> (Option<EngineKind>, simcuda_device::Nanos) {
    let config = &driver.config.gpus[gpu];
    let bytes = bytes as u64;
    let (engine, time) = match (to, from) {
        (Place::Device { gpu: to, .. }, Place::Device { gpu: from, .. }) if to == from => {
            // Read and written.
            (Some(EngineKind::Compute), span(bytes.saturating_mul(2), config.memory_bandwidth))
        }
        (Place::Device { .. }, Place::Device { .. }) => {
            (Some(EngineKind::Out), span(bytes, config.link_out))
        }
        (Place::Device { .. }, _) => (Some(EngineKind::In), span(bytes, config.link_in)),
        (_, Place::Device { .. }) => (Some(EngineKind::Out), span(bytes, config.link_out)),
        _ => return (None, 0),
    };
    (engine, time + config.copy_ns)
}
