//! Memory that stands for a GPU's: ordinary pages of the host, empty until they
//! are touched, at addresses that programs are not told. And address ranges
//! without memory, which is what programs get: to touch one is a fault.
#![allow(unsafe_code)] // mmap

use std::sync::Arc;

use crate::code::{OUT_OF_MEMORY, Outcome};
use crate::driver;

/// A piece of a GPU's memory; counted as used until the last owner lets go.
pub(crate) struct Physical {
    base: *mut u8,
    length: usize,
    gpu: usize,
}

// SAFETY: the pages belong to the process; what threads do in them is ordered by
// the timeline, as on a GPU, and races there are the program's own.
unsafe impl Send for Physical {}
// SAFETY: as above.
unsafe impl Sync for Physical {}

impl Physical {
    /// Takes `length` bytes of GPU `gpu` (an index into all GPUs).
    pub(crate) fn new(gpu: usize, length: usize) -> Outcome<Arc<Physical>> {
        let driver = driver::get()?;
        driver.state.take(driver.charge, gpu, length as u64).map_err(|_| OUT_OF_MEMORY)?;
        match map(length, libc::PROT_READ | libc::PROT_WRITE) {
            Some(base) => Ok(Arc::new(Physical { base: base as *mut u8, length, gpu })),
            None => {
                driver.state.give_back(driver.charge, gpu, length as u64);
                Err(OUT_OF_MEMORY)
            }
        }
    }

    /// The GPU that it is on.
    pub(crate) fn gpu(&self) -> usize {
        self.gpu
    }

    /// Its size.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The bytes from `offset` on.
    pub(crate) fn at(self: &Arc<Physical>, offset: usize, length: usize) -> Segment {
        assert!(offset + length <= self.length, "a mapping ends inside its memory");
        Segment { start: self.base.wrapping_add(offset), length, _keeps: Some(Arc::clone(self)) }
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        unmap(self.base as u64, self.length);
        if let Ok(driver) = driver::get() {
            driver.state.give_back(driver.charge, self.gpu, self.length as u64);
        }
    }
}

/// A run of bytes, kept alive.
#[derive(Clone)]
pub(crate) struct Segment {
    start: *mut u8,
    length: usize,
    _keeps: Option<Arc<Physical>>,
}

// SAFETY: as for `Physical`.
unsafe impl Send for Segment {}

impl Segment {
    /// Memory of the host, which the program keeps for as long as work uses it.
    pub(crate) fn of_host(address: u64, length: usize) -> Segment {
        Segment { start: address as *mut u8, length, _keeps: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start
    }

    /// The segment from `offset` on, `length` long.
    pub(crate) fn part(&self, offset: usize, length: usize) -> Segment {
        assert!(offset + length <= self.length, "a part lies inside its segment");
        Segment { start: self.start.wrapping_add(offset), length, ..self.clone() }
    }
}

/// Takes a range of addresses without memory behind them.
pub(crate) fn reserve(length: usize) -> Option<u64> {
    map(length, libc::PROT_NONE)
}

/// Takes zeroed host memory.
pub(crate) fn host(length: usize) -> Option<u64> {
    map(length, libc::PROT_READ | libc::PROT_WRITE)
}

/// Gives a range back.
pub(crate) fn unmap(address: u64, length: usize) {
    // SAFETY: the range came from `map`, and its owner gives it up.
    unsafe { libc::munmap(address as *mut libc::c_void, length) };
}

fn map(length: usize, protection: libc::c_int) -> Option<u64> {
    // SAFETY: a new private mapping at an address of the system's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (address != libc::MAP_FAILED).then_some(address as u64)
}
