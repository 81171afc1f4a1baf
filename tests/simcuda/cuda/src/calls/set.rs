//! Fills.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_uchar, c_uint, c_ushort};

use acb_cuda_abi::{StreamForm, sys};
use simcuda_device::layout::EngineKind;

use crate::code::{INVALID_VALUE, Outcome};
use crate::driver::{self, Driver};
use crate::kernels::span;
use crate::space::{Access, RegionKind, Space};
use crate::timeline::Submission;
use crate::work::{Extent, Pitch, SetShape, Work};

macro_rules! fills {
    ($($plain:ident $plain_ptds:ident $later:ident $later_ptsz:ident
       $pitched:ident $pitched_ptds:ident $pitched_later:ident $pitched_later_ptsz:ident
       $value:ty, $width:literal;)*) => {$(
        stream_calls! {
            fn $plain $plain_ptds [form] (to: u64, value: $value, count: usize) {
                set(to, 0, u32::from(value), $width, count, 1, 0, form)
            }
            fn $later $later_ptsz [form] (to: u64, value: $value, count: usize, stream: sys::CUstream) {
                set(to, 0, u32::from(value), $width, count, 1, stream as u64, form)
            }
            fn $pitched $pitched_ptds [form] (
                to: u64, pitch: usize, value: $value, width: usize, height: usize,
            ) {
                set(to, pitch, u32::from(value), $width, width, height, 0, form)
            }
            fn $pitched_later $pitched_later_ptsz [form] (
                to: u64, pitch: usize, value: $value, width: usize, height: usize,
                stream: sys::CUstream,
            ) {
                set(to, pitch, u32::from(value), $width, width, height, stream as u64, form)
            }
        }
    )*};
}

fills! {
    cuMemsetD8_v2 cuMemsetD8_v2_ptds cuMemsetD8Async cuMemsetD8Async_ptsz
    cuMemsetD2D8_v2 cuMemsetD2D8_v2_ptds cuMemsetD2D8Async cuMemsetD2D8Async_ptsz c_uchar, 1;
    cuMemsetD16_v2 cuMemsetD16_v2_ptds cuMemsetD16Async cuMemsetD16Async_ptsz
    cuMemsetD2D16_v2 cuMemsetD2D16_v2_ptds cuMemsetD2D16Async cuMemsetD2D16Async_ptsz c_ushort, 2;
    cuMemsetD32_v2 cuMemsetD32_v2_ptds cuMemsetD32Async cuMemsetD32Async_ptsz
    cuMemsetD2D32_v2 cuMemsetD2D32_v2_ptds cuMemsetD2D32Async cuMemsetD2D32Async_ptsz c_uint, 4;
}

#[allow(clippy::too_many_arguments)]
fn set(
    address: u64,
    pitch: usize,
    value: u32,
    width: usize,
    count: usize,
    rows: usize,
    stream: u64,
    form: StreamForm,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream, form)?;
    let gpu = tables.gpu_of(stream)?;
    let bytes = count.checked_mul(width).ok_or(INVALID_VALUE)?;
    let extent = Extent { bytes, rows, layers: 1 };
    if extent.total() == 0 {
        return Ok(());
    }
    let pitch = Pitch { row: pitch, layer: 0 };
    let shape = SetShape { address, gpu, value, width, pitch, extent };
    let submission = shaped(driver, &tables.space, shape)?;
    // Fills of device memory do not wait for the host, whatever their name.
    super::copy::hand_in(driver, tables, stream, submission, false)
}

/// Checks a fill, and makes work of it.
pub(super) fn shaped(driver: &Driver, space: &Space, shape: SetShape) -> Outcome<Submission> {
    let SetShape { address, gpu, width, pitch, extent, .. } = shape;
    if !address.is_multiple_of(width as u64)
        || (extent.rows > 1 && (pitch.row < extent.bytes || !pitch.row.is_multiple_of(width)))
    {
        return Err(INVALID_VALUE);
    }
    let span_of_it = extent.span(pitch);
    match space.region_of(address) {
        Some((start, region)) if matches!(region.kind, RegionKind::Graph { .. }) => {
            // What lies behind it comes when its graph runs.
            let end = address.checked_add(span_of_it as u64).ok_or(INVALID_VALUE)?;
            if end > start + region.length as u64 {
                return Err(INVALID_VALUE);
            }
        }
        _ => {
            space.segments(gpu, address, span_of_it, Access::Write).ok_or(INVALID_VALUE)?;
        }
    }
    let config = &driver.config.gpus[gpu];
    let length = span(extent.total() as u64, config.memory_bandwidth) + config.launch_ns;
    let work = Work::Set(Box::new(shape));
    Ok(Submission { engine: Some(EngineKind::Compute), gpu, length, work })
}
