//! Streams write values to memory, and wait until memory has one.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;
use std::sync::Arc;

use acb_cuda_abi::{StreamForm, sys};

use super::copy::{hand_in, reached};
use crate::code::{INVALID_VALUE, NOT_SUPPORTED, Outcome};
use crate::driver;
use crate::space::Access;
use crate::timeline::Submission;
use crate::work::{Compare, CopyShape, Extent, Pitch, Side, WaitShape, Work};

/// `CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER`
const NO_BARRIER: c_uint = 1;
/// `CU_STREAM_WAIT_VALUE_FLUSH`
const FLUSH: c_uint = 1 << 30;

macro_rules! values {
    ($($write:ident $write_ptsz:ident $wait:ident $wait_ptsz:ident $value:ty;)*) => {
        stream_calls! {$(
            fn $write $write_ptsz [form] (
                stream: sys::CUstream, address: u64, value: $value, flags: c_uint,
            ) {
                write(stream, form, address, &value.to_ne_bytes(), flags)
            }
            fn $wait $wait_ptsz [form] (
                stream: sys::CUstream, address: u64, value: $value, flags: c_uint,
            ) {
                wait(stream, form, address, (u64::from(value), size_of::<$value>()), flags)
            }
        )*}
    };
}

values! {
    cuStreamWriteValue32 cuStreamWriteValue32_ptsz cuStreamWaitValue32 cuStreamWaitValue32_ptsz c_uint;
    cuStreamWriteValue64 cuStreamWriteValue64_ptsz cuStreamWaitValue64 cuStreamWaitValue64_ptsz u64;
    cuStreamWriteValue32_v2 cuStreamWriteValue32_v2_ptsz cuStreamWaitValue32_v2 cuStreamWaitValue32_v2_ptsz c_uint;
    cuStreamWriteValue64_v2 cuStreamWriteValue64_v2_ptsz cuStreamWaitValue64_v2 cuStreamWaitValue64_v2_ptsz u64;
}

stream_calls! {
    fn cuStreamBatchMemOp cuStreamBatchMemOp_ptsz [form] (
        stream: sys::CUstream,
        count: c_uint,
        operations: *mut sys::CUstreamBatchMemOpParams,
        flags: c_uint,
    ) {
        batch(stream, form, count, operations, flags)
    }

    fn cuStreamBatchMemOp_v2 cuStreamBatchMemOp_v2_ptsz [form] (
        stream: sys::CUstream,
        count: c_uint,
        operations: *mut sys::CUstreamBatchMemOpParams,
        flags: c_uint,
    ) {
        batch(stream, form, count, operations, flags)
    }
}

/// # Safety
/// `operations` is null or has `count` elements.
unsafe fn batch(
    stream: sys::CUstream,
    form: StreamForm,
    count: c_uint,
    operations: *mut sys::CUstreamBatchMemOpParams,
    flags: c_uint,
) -> Outcome {
    driver::get()?;
    // What the driver takes at a time.
    if operations.is_null() || !(1..=256).contains(&count) || flags != 0 {
        return Err(INVALID_VALUE);
    }
    for at in 0..count as usize {
        // SAFETY: the caller vouches for the list; kinds are read as numbers. Each is six words: what, address, value, flags.
        let [what, address, value, flags] =
            unsafe { operations.add(at).cast::<[u64; 4]>().read_unaligned() };
        let (what, flags) = (what as c_uint, flags as c_uint);
        match what {
            1 => wait(stream, form, address, (value & 0xffff_ffff, 4), flags)?,
            4 => wait(stream, form, address, (value, 8), flags)?,
            2 => write(stream, form, address, &(value as u32).to_ne_bytes(), flags)?,
            5 => write(stream, form, address, &value.to_ne_bytes(), flags)?,
            // Writes of others, and this stream's own, are in order here anyway.
            3 | 6 => {}
            _ => return Err(INVALID_VALUE),
        }
    }
    Ok(())
}

fn write(
    stream: sys::CUstream,
    form: StreamForm,
    address: u64,
    bytes: &[u8],
    flags: c_uint,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    let gpu = tables.gpu_of(stream)?;
    if flags & !NO_BARRIER != 0 || !address.is_multiple_of(bytes.len() as u64) {
        return Err(INVALID_VALUE);
    }
    let to = reached(&tables.space, address, bytes.len(), gpu, Access::Write)?;
    let shape = CopyShape {
        from: Side::Staged(Arc::from(bytes)),
        to,
        from_pitch: Pitch::default(),
        to_pitch: Pitch::default(),
        extent: Extent { bytes: bytes.len(), rows: 1, layers: 1 },
        fails: false,
    };
    let work = Work::Copy(Box::new(shape));
    let submission = Submission { engine: None, gpu, length: 0, work };
    hand_in(driver, tables, stream, submission, false)
}

fn wait(
    stream: sys::CUstream,
    form: StreamForm,
    address: u64,
    (value, width): (u64, usize),
    flags: c_uint,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    let gpu = tables.gpu_of(stream)?;
    let compare = match flags & !FLUSH {
        0 => Compare::AtLeast,
        1 => Compare::Equal,
        2 => Compare::AnyBit,
        // Devices need not have it.
        3 => return Err(NOT_SUPPORTED),
        _ => return Err(INVALID_VALUE),
    };
    if !address.is_multiple_of(width as u64) {
        return Err(INVALID_VALUE);
    }
    let side = reached(&tables.space, address, width, gpu, Access::Read)?;
    let work = Work::Wait(WaitShape { side, value, width, compare });
    let submission = Submission { engine: None, gpu, length: 0, work };
    hand_in(driver, tables, stream, submission, false)
}
