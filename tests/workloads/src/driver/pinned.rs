//! Pinned host memory and the copies that run by themselves.
//!
//! Owns: these calls. Does not own: what is measured with them.
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::ffi::{c_uint, c_void};
use std::ptr;

use super::{DevicePtr, Driver, DriverError, Stream};

functions! {
    alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    free = "cuMemFreeHost"(*mut c_void);
    copy_in = "cuMemcpyHtoDAsync_v2"(DevicePtr, *const c_void, usize, *mut c_void);
    copy_out = "cuMemcpyDtoHAsync_v2"(*mut c_void, DevicePtr, usize, *mut c_void);
}

/// Pinned memory; lives until [`Pinned::free`].
pub struct Pinned<'a> {
    driver: &'a Driver,
    table: Table,
    memory: *mut c_void,
    bytes: usize,
}

impl<'a> Pinned<'a> {
    /// `cuMemHostAlloc`.
    pub fn alloc(driver: &'a Driver, bytes: usize) -> Result<Self, DriverError> {
        let table = Table::load(&driver.library)?;
        let mut pinned = Self { driver, table, memory: ptr::null_mut(), bytes };
        let mut memory = ptr::null_mut();
        call!(pinned, alloc(&mut memory, bytes, 0))?;
        pinned.memory = memory;
        Ok(pinned)
    }

    fn error(&self, call: &'static str, code: u32) -> DriverError {
        self.driver.error(call, code)
    }

    /// Where kernels find it.
    pub fn address(&self) -> DevicePtr {
        self.memory as DevicePtr
    }

    /// Writes its first word.
    pub fn write(&self, word: u64) {
        assert!(self.bytes >= size_of::<u64>());
        // SAFETY: it is that large, aligned to a page, and there until `free` takes it.
        unsafe { self.memory.cast::<u64>().write_volatile(word) }
    }

    /// All of it to the GPU, in copies of `piece` bytes, in the stream's order.
    pub fn copy_in(&self, to: DevicePtr, piece: usize, stream: Stream) -> Result<(), DriverError> {
        self.pieces(piece).try_for_each(|(at, bytes)| {
            let from = self.memory.wrapping_byte_add(at).cast_const();
            call!(self, copy_in(to + at as u64, from, bytes, stream.handle))
        })
    }

    /// All of it from the GPU, in copies of `piece` bytes, in the stream's order.
    pub fn copy_out(
        &self,
        from: DevicePtr,
        piece: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.pieces(piece).try_for_each(|(at, bytes)| {
            let to = self.memory.wrapping_byte_add(at);
            call!(self, copy_out(to, from + at as u64, bytes, stream.handle))
        })
    }

    /// Offsets and lengths.
    fn pieces(&self, piece: usize) -> impl Iterator<Item = (usize, usize)> {
        let all = self.bytes;
        (0..all).step_by(piece).map(move |at| (at, piece.min(all - at)))
    }

    /// `cuMemFreeHost`.
    pub fn free(self) -> Result<(), DriverError> {
        call!(self, free(self.memory))
    }
}
