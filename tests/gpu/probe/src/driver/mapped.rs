//! Device memory mapped chunk by chunk with the driver's virtual-memory calls, as the pager would have it:
//! a reserved range of addresses, and physical chunks that come and go below it.
// The driver's handles get owners.
#![allow(unsafe_code)]

use acb_cuda_abi::sys;

use super::device::Gpu;
use super::table::{DevicePtr, Driver, DriverError};

type Result<T> = std::result::Result<T, DriverError>;

/// A range of device addresses, with or without memory behind them.
pub(crate) struct Range {
    driver: &'static Driver,
    ordinal: i32,
    pub(crate) at: DevicePtr,
    pub(crate) bytes: u64,
    chunk: u64,
    /// Physical chunk below each piece of the range; None: not mapped.
    chunks: Vec<Option<u64>>,
}

impl Range {
    /// Reserves addresses for `bytes`, a multiple of `chunk`.
    pub(crate) fn reserve(gpu: &Gpu, bytes: u64, chunk: u64) -> Result<Self> {
        assert!(bytes.is_multiple_of(chunk), "a range is a whole number of chunks");
        let mut at = 0;
        // SAFETY: a live local; address 0 means anywhere.
        unsafe { gpu.driver.cuMemAddressReserve(&mut at, bytes as usize, 0, 0, 0) }?;
        let chunks = vec![None; (bytes / chunk) as usize];
        Ok(Self { driver: gpu.driver, ordinal: gpu.ordinal, at, bytes, chunk, chunks })
    }

    /// Reserves and maps the whole range.
    pub(crate) fn filled(gpu: &Gpu, bytes: u64, chunk: u64) -> Result<Self> {
        let mut range = Self::reserve(gpu, bytes, chunk)?;
        for index in 0..range.count() {
            range.put(index)?;
        }
        Ok(range)
    }

    pub(crate) fn count(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn address(&self, index: usize) -> DevicePtr {
        self.at + index as u64 * self.chunk
    }

    /// Makes a physical chunk that is not mapped yet.
    pub(crate) fn create(&self) -> Result<u64> {
        let mut handle = 0;
        let prop = properties(self.ordinal);
        // SAFETY: live locals.
        unsafe { self.driver.cuMemCreate(&mut handle, self.chunk as usize, &prop, 0) }?;
        Ok(handle)
    }

    /// Maps a chunk of `create`; the range owns it then.
    pub(crate) fn map(&mut self, index: usize, handle: u64) -> Result<()> {
        assert!(self.chunks[index].is_none(), "chunk {index} is mapped already");
        // SAFETY: a piece of this range with nothing below it; a handle of `create`.
        unsafe { self.driver.cuMemMap(self.address(index), self.chunk as usize, 0, handle, 0) }?;
        self.chunks[index] = Some(handle);
        Ok(())
    }

    /// Lets the device read and write `count` chunks from `index` on.
    pub(crate) fn open(&self, index: usize, count: usize) -> Result<()> {
        let access = sys::CUmemAccessDesc {
            location: location(self.ordinal),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let bytes = self.chunk as usize * count;
        // SAFETY: mapped pieces of this range; a live local.
        unsafe { self.driver.cuMemSetAccess(self.address(index), bytes, &access, 1) }
    }

    /// Create, map and open.
    pub(crate) fn put(&mut self, index: usize) -> Result<()> {
        let handle = self.create()?;
        self.map(index, handle)?;
        self.open(index, 1)
    }

    /// Unmaps a chunk and hands its handle over.
    pub(crate) fn unmap(&mut self, index: usize) -> Result<u64> {
        let handle = self.chunks[index].take().expect("only mapped chunks are unmapped");
        // SAFETY: this piece of the range is mapped; the probe lets nothing run on it.
        unsafe { self.driver.cuMemUnmap(self.address(index), self.chunk as usize) }?;
        Ok(handle)
    }

    /// Gives a physical chunk back.
    pub(crate) fn release(&self, handle: u64) -> Result<()> {
        // SAFETY: a handle of `create`, given up here once.
        unsafe { self.driver.cuMemRelease(handle) }
    }

    /// Unmap and release.
    pub(crate) fn take(&mut self, index: usize) -> Result<()> {
        let handle = self.unmap(index)?;
        self.release(handle)
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        for index in 0..self.count() {
            if self.chunks[index].is_some() {
                // A failure here has no remedy.
                let _ = self.take(index);
            }
        }
        // SAFETY: this range, given up here once, with nothing below it any more.
        let _ = unsafe { self.driver.cuMemAddressFree(self.at, self.bytes as usize) };
    }
}

/// Least and recommended size of a chunk.
pub(crate) fn granularity(gpu: &Gpu) -> Result<(u64, u64)> {
    let prop = properties(gpu.ordinal);
    let (mut least, mut recommended) = (0, 0);
    // SAFETY: live locals.
    unsafe {
        gpu.driver.cuMemGetAllocationGranularity(&mut least, &prop, 0)?;
        gpu.driver.cuMemGetAllocationGranularity(&mut recommended, &prop, 1)?;
    }
    Ok((least as u64, recommended as u64))
}

fn location(ordinal: i32) -> sys::CUmemLocation {
    // SAFETY: a C structure of plain numbers, for which zeros are right.
    let mut location: sys::CUmemLocation = unsafe { std::mem::zeroed() };
    location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    location.id = ordinal;
    location
}

fn properties(ordinal: i32) -> sys::CUmemAllocationProp {
    // SAFETY: a C structure for which zeros are right: no handle type, no flags.
    let mut prop: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    prop.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location = location(ordinal);
    prop
}
