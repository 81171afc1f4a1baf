//! Copies as programs describe them: their ends, and how far rows and layers are
//! apart at each.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use crate::code::{INVALID_HANDLE, INVALID_VALUE, Outcome};
use crate::driver;
use crate::handles::Handle;
use crate::work::{Extent, Pitch};

/// An end of a copy as a call names it.
#[derive(Clone, Copy)]
pub(super) enum End {
    Host(u64),
    Device(u64),
    /// Unified addressing tells.
    Either(u64),
}

/// A copy as a call names it.
pub(super) struct Request {
    pub(super) to: End,
    pub(super) to_pitch: Pitch,
    pub(super) from: End,
    pub(super) from_pitch: Pitch,
    pub(super) extent: Extent,
}

impl Request {
    pub(super) fn line(to: End, from: End, bytes: usize) -> Request {
        let pitch = Pitch::default();
        let extent = Extent { bytes, rows: 1, layers: 1 };
        Request { to, to_pitch: pitch, from, from_pitch: pitch, extent }
    }
}

/// # Safety
/// `shape` is null or the structure that it should be.
pub(super) unsafe fn flat(shape: *const sys::CUDA_MEMCPY2D) -> Outcome<Request> {
    if shape.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null. Kinds are read as numbers: a program may have written any.
    unsafe {
        let kind = |field: *const sys::CUmemorytype| field.cast::<c_uint>().read();
        let s = &raw const *shape;
        let (from_array, to_array) = ((*s).srcArray as u64, (*s).dstArray as u64);
        let from_kind = kind(&raw const (*s).srcMemoryType);
        let to_kind = kind(&raw const (*s).dstMemoryType);
        let from_array = layout(from_kind, from_array)?;
        let to_array = layout(to_kind, to_array)?;
        let from_row = from_array.map_or((*s).srcPitch, |array| array.row);
        let to_row = to_array.map_or((*s).dstPitch, |array| array.row);
        let bytes = (*s).WidthInBytes;
        let from_start = (*s).srcXInBytes as u64 + (*s).srcY as u64 * from_row as u64;
        let to_start = (*s).dstXInBytes as u64 + (*s).dstY as u64 * to_row as u64;
        let from = end_of(from_kind, (*s).srcHost as u64, (*s).srcDevice, from_array)?;
        let to = end_of(to_kind, (*s).dstHost as u64, (*s).dstDevice, to_array)?;
        let rows = (*s).Height;
        let pitch = |row: usize| {
            let row = if row == 0 { bytes } else { row };
            if row < bytes { Err(INVALID_VALUE) } else { Ok(Pitch { row, layer: 0 }) }
        };
        Ok(Request {
            to: moved(to, to_start),
            to_pitch: pitch(to_row)?,
            from: moved(from, from_start),
            from_pitch: pitch(from_row)?,
            extent: Extent { bytes, rows, layers: 1 },
        })
    }
}

/// # Safety
/// `shape` is null or the structure that it should be.
pub(super) unsafe fn deep(shape: *const sys::CUDA_MEMCPY3D) -> Outcome<Request> {
    if shape.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null. Kinds are read as numbers: a program may have written any.
    unsafe {
        let kind = |field: *const sys::CUmemorytype| field.cast::<c_uint>().read();
        let s = &raw const *shape;
        let bytes = (*s).WidthInBytes;
        let rows = (*s).Height;
        let pitch = |row: usize, height: usize| {
            let row = if row == 0 { bytes } else { row };
            let height = if height == 0 { rows } else { height };
            if row < bytes || height < rows {
                return Err(INVALID_VALUE);
            }
            Ok(Pitch { row, layer: row.checked_mul(height).ok_or(INVALID_VALUE)? })
        };
        let (from_array, to_array) = ((*s).srcArray as u64, (*s).dstArray as u64);
        let from_kind = kind(&raw const (*s).srcMemoryType);
        let to_kind = kind(&raw const (*s).dstMemoryType);
        let from_array = layout(from_kind, from_array)?;
        let to_array = layout(to_kind, to_array)?;
        let from_pitch = match from_array {
            Some(array) => pitch(array.row, array.rows)?,
            None => pitch((*s).srcPitch, (*s).srcHeight)?,
        };
        let to_pitch = match to_array {
            Some(array) => pitch(array.row, array.rows)?,
            None => pitch((*s).dstPitch, (*s).dstHeight)?,
        };
        let start = |x: usize, y: usize, z: usize, pitch: Pitch| {
            x as u64 + y as u64 * pitch.row as u64 + z as u64 * pitch.layer as u64
        };
        let from = end_of(from_kind, (*s).srcHost as u64, (*s).srcDevice, from_array)?;
        let to = end_of(to_kind, (*s).dstHost as u64, (*s).dstDevice, to_array)?;
        Ok(Request {
            to: moved(to, start((*s).dstXInBytes, (*s).dstY, (*s).dstZ, to_pitch)),
            to_pitch,
            from: moved(from, start((*s).srcXInBytes, (*s).srcY, (*s).srcZ, from_pitch)),
            from_pitch,
            extent: Extent { bytes, rows, layers: (*s).Depth },
        })
    }
}

/// `CU_MEMORYTYPE_ARRAY`
const ARRAY: c_uint = 3;

/// Where an array lies, and how.
#[derive(Clone, Copy)]
struct Layout {
    start: u64,
    row: usize,
    rows: usize,
}

/// How the array lies that an end of a copy names, if its kind is that.
fn layout(kind: c_uint, array: u64) -> Outcome<Option<Layout>> {
    if kind != ARRAY {
        return Ok(None);
    }
    let driver = driver::get()?;
    let tables = driver.lock();
    let array = tables.arrays.get(Handle::from_bits(array)).ok_or(INVALID_HANDLE)?;
    Ok(Some(Layout { start: array.start, row: array.row, rows: array.size[1].max(1) }))
}

/// A part of an array, as a line of bytes.
pub(super) fn inside(array: sys::CUarray, offset: usize) -> Outcome<End> {
    let layout = layout(ARRAY, array as u64)?.ok_or(INVALID_HANDLE)?;
    Ok(End::Device(layout.start + offset as u64))
}

fn end_of(kind: c_uint, host: u64, device: u64, array: Option<Layout>) -> Outcome<End> {
    match kind {
        1 => Ok(End::Host(host)),
        2 => Ok(End::Device(device)),
        ARRAY => array.map(|array| End::Device(array.start)).ok_or(INVALID_HANDLE),
        4 => Ok(End::Either(device)),
        _ => Err(INVALID_VALUE),
    }
}

fn moved(end: End, by: u64) -> End {
    match end {
        End::Host(at) => End::Host(at.wrapping_add(by)),
        End::Device(at) => End::Device(at.wrapping_add(by)),
        End::Either(at) => End::Either(at.wrapping_add(by)),
    }
}
