//! Chunks of other processes, mapped here one behind the other.
//!
//! Owns: the driver's calls for it. Does not own: where they came from (`ipc`); nothing of it is in the books, for it is never moved.

use super::PAGER;
use super::allocate::Failure;
use super::device;
use rustix::fd::OwnedFd;

/// Where they are.
pub(crate) struct Mapped {
    /// Where the range of addresses begins, and how long it is.
    pub(crate) range: (u64, u64),
    /// The sizes of the mappings in it.
    pub(crate) pieces: Vec<u64>,
    /// Whose memory it is.
    pub(crate) device: u32,
}

/// Maps memory behind descriptors, with their sizes; readable and writable by the current device, and all that reach it.
pub(crate) fn map(pieces: Vec<(u64, OwnedFd)>) -> Result<Mapped, Failure> {
    let bytes = pieces.iter().map(|(bytes, _)| bytes).sum();
    let start = device::reserve(bytes).map_err(|result| ("cuMemAddressReserve", result))?;
    let mut mapped = Mapped { range: (start, bytes), pieces: Vec::new(), device: 0 };
    match mapped.fill(pieces).and_then(|()| mapped.open()) {
        Ok(()) => Ok(mapped),
        Err(failure) => {
            mapped.unmap();
            Err(failure)
        }
    }
}

impl Mapped {
    fn fill(&mut self, pieces: Vec<(u64, OwnedFd)>) -> Result<(), Failure> {
        let mut at = self.range.0;
        for (bytes, descriptor) in pieces {
            let handle = device::import(&descriptor)
                .map_err(|result| ("cuMemImportFromShareableHandle", result))?;
            self.device = device::device_of(handle).unwrap_or(0);
            let done = device::map(at, bytes, 0, handle).map_err(|result| ("cuMemMap", result));
            // A mapping keeps the memory.
            let _ = device::release(handle);
            done?;
            self.pieces.push(bytes);
            at += bytes;
        }
        Ok(())
    }

    fn open(&self) -> Result<(), Failure> {
        let (start, bytes) = self.range;
        let current = device::current_device().unwrap_or(self.device);
        let mut least = vec![device::read_write(self.device)];
        if current != self.device {
            least.push(device::read_write(current));
        }
        let mut most = PAGER.grants_of(self.device).unwrap_or_default();
        most.extend(
            least.iter().filter(|grant| !most.contains(grant)).copied().collect::<Vec<_>>(),
        );
        device::open(start, bytes, &most)
            .or_else(|_| device::open(start, bytes, &least))
            .map_err(|result| ("cuMemSetAccess", result))
    }

    /// Nothing is at work in it.
    pub(crate) fn unmap(&self) {
        let mut at = self.range.0;
        for bytes in &self.pieces {
            let _ = device::unmap(at, *bytes);
            at += bytes;
        }
        let _ = device::free_addresses(self.range.0, self.range.1);
    }
}

/// Waits for all work of the current context.
pub(crate) use super::device::synchronize as drain;
