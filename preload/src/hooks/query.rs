//! Questions about addresses: the driver knows nothing of memory that is absent, nor of what is cut from shared ranges.
//!
//! Owns: the answers for memory of the pager's. Does not own: the rest, which the driver answers.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::share::in_range;
use crate::ipc;
use crate::pager::{Described, PAGER, RDMA, can_share};
use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use std::ffi::*;

const SYNC_MEMOPS: c_uint =
    sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_SYNC_MEMOPS as c_uint;

/// Memory of the pager's, or what was opened of another process's.
fn described(address: u64) -> Option<Described> {
    PAGER.describe(address).or_else(|| ipc::described(address))
}

pub(crate) unsafe fn cuMemGetAddressRange(
    pbase: *mut c_uint,
    psize: *mut c_uint,
    dptr: c_uint,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemGetAddressRange(pbase, psize, dptr) }
}

/// Either pointer may be NULL.
pub(crate) unsafe fn cuMemGetAddressRange_v2(
    pbase: *mut u64,
    psize: *mut usize,
    dptr: u64,
) -> CuResult {
    let Some(found) = described(dptr) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::cuMemGetAddressRange_v2(pbase, psize, dptr) };
    };
    // SAFETY: NULL, or a place of the program's.
    unsafe {
        if !pbase.is_null() {
            pbase.write(found.start);
        }
        if !psize.is_null() {
            psize.write(found.bytes as usize);
        }
    }
    CuResult::SUCCESS
}

pub(crate) unsafe fn cuPointerGetAttribute(
    data: *mut c_void,
    attribute: c_uint,
    ptr: u64,
) -> CuResult {
    if !data.is_null()
        && let Some(found) = described(ptr)
    {
        // SAFETY: a place that is large enough for this attribute.
        match unsafe { write(&found, data, attribute, ptr) } {
            Answered::Yes => return CuResult::SUCCESS,
            Answered::DoesNotHold => return CuResult::INVALID_VALUE,
            Answered::Unknown => {}
        }
    }
    // SAFETY: the program's own arguments.
    unsafe { real::cuPointerGetAttribute(data, attribute, ptr) }
}

/// Copies and fills that need not be waited for are waited for from now on: with all memory alike, for which of it they use
/// would have to be found out in each call. And the memory stays.
pub(crate) unsafe fn cuPointerSetAttribute(
    value: *const c_void,
    attribute: c_uint,
    ptr: u64,
) -> CuResult {
    let Some(found) = PAGER.describe(ptr) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::cuPointerSetAttribute(value, attribute, ptr) };
    };
    if attribute != SYNC_MEMOPS || value.is_null() {
        return CuResult::INVALID_VALUE;
    }
    // SAFETY: not NULL; a number of 32 bits.
    let on = unsafe { value.cast::<c_uint>().read_unaligned() } != 0;
    let set = || {
        PAGER.set_synchronous(found.number, on);
        CuResult::SUCCESS
    };
    match on {
        // Libraries want it of memory that they let network cards reach.
        true => in_range("cuPointerSetAttribute", (found.start, found.bytes as usize), RDMA, set),
        false => set(),
    }
}

/// Unlike the single form it succeeds always: what does not hold is zero.
pub(crate) unsafe fn cuPointerGetAttributes(
    numAttributes: c_uint,
    attributes: *mut c_uint,
    data: *mut *mut c_void,
    ptr: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuPointerGetAttributes(numAttributes, attributes, data, ptr) };
    let Some(found) = described(ptr) else { return result };
    if attributes.is_null() || data.is_null() {
        return result;
    }
    for at in 0..numAttributes as usize {
        // SAFETY: the program says that there are so many.
        let (attribute, place) = unsafe { (attributes.add(at).read(), data.add(at).read()) };
        if !place.is_null() {
            // SAFETY: a place that is large enough for this attribute. What is not known here the driver has
            // answered above.
            let _ = unsafe { write(&found, place, attribute, ptr) };
        }
    }
    CuResult::SUCCESS
}

enum Answered {
    Yes,
    DoesNotHold,
    /// The driver's to answer.
    Unknown,
}

/// # Safety
/// `data` is a place for a value of this attribute.
unsafe fn write(found: &Described, data: *mut c_void, attribute: c_uint, ptr: u64) -> Answered {
    use sys::CUpointer_attribute_enum as A;
    let is = |known: A| attribute == known as c_uint;
    // SAFETY: the widths are those of the driver's header.
    unsafe {
        if is(A::CU_POINTER_ATTRIBUTE_CONTEXT) {
            if found.context == 0 {
                return Answered::DoesNotHold;
            }
            data.cast::<usize>().write(found.context);
        } else if is(A::CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
            data.cast::<c_uint>().write(sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as c_uint);
        } else if is(A::CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
            data.cast::<u64>().write(ptr);
        } else if is(A::CU_POINTER_ATTRIBUTE_HOST_POINTER) {
            return Answered::DoesNotHold;
        } else if is(A::CU_POINTER_ATTRIBUTE_BUFFER_ID) {
            data.cast::<u64>().write(found.number);
        } else if is(A::CU_POINTER_ATTRIBUTE_IS_MANAGED)
            || is(A::CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE)
        {
            data.cast::<c_int>().write(0);
        } else if is(A::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE) {
            let plain = found.context != 0 && found.pool == 0 && PAGER.describe(ptr).is_some();
            data.cast::<c_int>().write((plain && can_share()).into());
        } else if attribute == SYNC_MEMOPS {
            data.cast::<c_uint>().write(PAGER.is_synchronous(found.number).into());
        } else if is(A::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) {
            data.cast::<c_int>().write(found.device as c_int);
        } else if is(A::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR) {
            data.cast::<u64>().write(found.start);
        } else if is(A::CU_POINTER_ATTRIBUTE_RANGE_SIZE) {
            data.cast::<usize>().write(found.bytes as usize);
        } else if is(A::CU_POINTER_ATTRIBUTE_MAPPED) {
            data.cast::<c_int>().write(1);
        } else if is(A::CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES) {
            data.cast::<u64>().write(found.handle_types.into());
        } else if is(A::CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE) {
            data.cast::<u64>().write(found.pool);
        } else if is(A::CU_POINTER_ATTRIBUTE_ACCESS_FLAGS) {
            data.cast::<c_uint>().write(3);
        } else {
            return Answered::Unknown;
        }
    }
    Answered::Yes
}
