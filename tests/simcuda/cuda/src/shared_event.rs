//! Events of several processes: how often one was recorded, and which of these has been reached, in a page that
//! all of them map.
//!
//! ```text
//! record: latest += 1 ─► its work is over: reached = that number
//! ```
//! Whoever waits does so for the number that was the latest when it began.
#![allow(unsafe_code)] // numbers in memory that other processes write

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::code::{INVALID_VALUE, OPERATING_SYSTEM, Outcome};
use crate::physical::{anonymous_file, file_of, map_file, unmap};

/// How the file behind one is called.
const NAME: &str = "simcuda-event";
const PAGE: usize = 4096;

/// An event that may be opened by other processes.
pub(crate) struct SharedEvent {
    page: *const Numbers,
    file: File,
}

#[repr(C)]
struct Numbers {
    latest: AtomicU64,
    reached: AtomicU64,
}

// SAFETY: the page holds atomic numbers alone, and lives as long as this.
unsafe impl Send for SharedEvent {}
// SAFETY: as above.
unsafe impl Sync for SharedEvent {}

impl PartialEq for SharedEvent {
    fn eq(&self, other: &SharedEvent) -> bool {
        self.page == other.page
    }
}

impl SharedEvent {
    /// One that was never recorded.
    pub(crate) fn new() -> Outcome<Arc<SharedEvent>> {
        let file = anonymous_file(NAME)?;
        file.set_len(PAGE as u64).map_err(|_| OPERATING_SYSTEM)?;
        SharedEvent::of(file)
    }

    /// Another process's, by the number that its file has there.
    pub(crate) fn import(pid: u32, number: RawFd) -> Outcome<Arc<SharedEvent>> {
        let file = file_of(pid, number, NAME)?;
        if file.metadata().map_err(|_| INVALID_VALUE)?.len() != PAGE as u64 {
            return Err(INVALID_VALUE);
        }
        SharedEvent::of(file)
    }

    fn of(file: File) -> Outcome<Arc<SharedEvent>> {
        // SAFETY: at an address of the system's choice.
        let page = unsafe { map_file(&file, PAGE, std::ptr::null_mut()) };
        let page = page.ok_or(OPERATING_SYSTEM)?.cast_const().cast();
        Ok(Arc::new(SharedEvent { page, file }))
    }

    /// The number of its file in this process.
    pub(crate) fn number(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn numbers(&self) -> &Numbers {
        // SAFETY: mapped until this is dropped; zeroes are good numbers.
        unsafe { &*self.page }
    }

    /// It is recorded once more; the number of that.
    pub(crate) fn record(&self) -> u64 {
        self.numbers().latest.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// What had been handed in before that is over.
    pub(crate) fn reach(&self, number: u64) {
        self.numbers().reached.fetch_max(number, Ordering::AcqRel);
    }

    /// The latest record; 0: none.
    pub(crate) fn latest(&self) -> u64 {
        self.numbers().latest.load(Ordering::Acquire)
    }

    /// Whether a record has been reached.
    pub(crate) fn has_reached(&self, number: u64) -> bool {
        self.numbers().reached.load(Ordering::Acquire) >= number
    }

    /// Whether the latest has.
    pub(crate) fn is_over(&self) -> bool {
        self.has_reached(self.latest())
    }
}

impl Drop for SharedEvent {
    fn drop(&mut self) {
        unmap(self.page as u64, PAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_see_the_same_and_an_older_end_takes_nothing_back() {
        let own = SharedEvent::new().unwrap();
        let theirs = SharedEvent::import(std::process::id(), own.number()).unwrap();
        assert!(theirs.is_over(), "never recorded");
        let (first, second) = (own.record(), theirs.record());
        assert!(!own.is_over() && !theirs.has_reached(first));
        theirs.reach(second);
        own.reach(first);
        assert!(own.is_over() && theirs.is_over());
        assert!(SharedEvent::import(std::process::id(), 0).is_err());
    }
}
