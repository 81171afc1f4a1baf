//! The shared file in memory, and its lock. Owns the mapping's unsafe sides; the
//! data's meaning is elsewhere. Lock: a robust mutex, so that a process that is
//! killed while it holds it blocks nobody.
#![allow(unsafe_code)] // maps a file and locks a mutex that other processes lock too

use std::cell::UnsafeCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;

use crate::layout::Shared;

const MAGIC: u64 = u64::from_le_bytes(*b"simcuda\x01");

#[repr(C)]
struct Whole {
    magic: u64,
    size: u64,
    config_hash: u64,
    lock: UnsafeCell<libc::pthread_mutex_t>,
    shared: UnsafeCell<Shared>,
}

/// The file, mapped.
pub(crate) struct Mapping {
    whole: NonNull<Whole>,
}

// SAFETY: the mapping is shared memory; all access to what changes in it goes
// through the process-shared mutex that lies in it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Why a state's file cannot be used.
#[derive(Debug)]
pub(crate) enum OpenError {
    Io(io::Error),
    Foreign { uid: u32 },
    OtherVersion,
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> OpenError {
        OpenError::Io(error)
    }
}

impl Mapping {
    /// Maps the file at `path`, which is made if it is not there. `renew` is
    /// asked, with every other opener kept out, whether a file of another
    /// configuration may be started afresh.
    pub(crate) fn open(
        path: &Path,
        config_hash: u64,
        renew: impl FnOnce(&mut Shared) -> bool,
    ) -> Result<Option<Mapping>, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)?;
        let metadata = file.metadata()?;
        // SAFETY: geteuid has no preconditions.
        if metadata.uid() != unsafe { libc::geteuid() } {
            return Err(OpenError::Foreign { uid: metadata.uid() });
        }
        let _alone = FileLock::take(&file)?;
        let size = size_of::<Whole>() as u64;
        let length = file.metadata()?.len();
        if length != 0 && length != size {
            return Err(OpenError::OtherVersion);
        }
        file.set_len(size)?;
        let mapping = Mapping::map(&file)?;
        // SAFETY: the mapping is as long as `Whole`, and while the flock is held
        // nobody else writes these three fields.
        let whole = unsafe { &mut *mapping.whole.as_ptr() };
        if whole.magic != MAGIC {
            whole.size = size;
            whole.config_hash = config_hash;
            mapping.make_lock()?;
            // Last: a kill before this point leaves a file that is started afresh.
            whole.magic = MAGIC;
        } else if whole.size != size {
            return Err(OpenError::OtherVersion);
        } else if whole.config_hash != config_hash {
            if !renew(&mut mapping.lock()) {
                return Ok(None);
            }
            whole.config_hash = config_hash;
        }
        Ok(Some(mapping))
    }

    fn map(file: &File) -> io::Result<Mapping> {
        // SAFETY: a new shared mapping of an open file that is long enough.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Whole>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(|whole| Mapping { whole })
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn make_lock(&self) -> io::Result<()> {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: the attributes are initialised by the first call, and the mutex
        // lies in memory that is ours alone while the flock is held.
        let failed = unsafe {
            libc::pthread_mutexattr_init(attributes.as_mut_ptr())
                | libc::pthread_mutexattr_setpshared(
                    attributes.as_mut_ptr(),
                    libc::PTHREAD_PROCESS_SHARED,
                )
                | libc::pthread_mutexattr_setrobust(
                    attributes.as_mut_ptr(),
                    libc::PTHREAD_MUTEX_ROBUST,
                )
                | libc::pthread_mutex_init(self.lock_pointer(), attributes.as_ptr())
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    fn lock_pointer(&self) -> *mut libc::pthread_mutex_t {
        // SAFETY: `whole` points to a live mapping for as long as `self` lives.
        unsafe { (*self.whole.as_ptr()).lock.get() }
    }

    /// Locks. What a killed holder left half done is repaired.
    pub(crate) fn lock(&self) -> Guard<'_> {
        // SAFETY: the mutex was initialised before the file got its magic number.
        let result = unsafe { libc::pthread_mutex_lock(self.lock_pointer()) };
        if result == libc::EOWNERDEAD {
            // SAFETY: this thread holds the mutex, in the inconsistent state.
            unsafe { libc::pthread_mutex_consistent(self.lock_pointer()) };
            let mut guard = Guard { mapping: self };
            crate::engine::repair(&mut guard);
            return guard;
        }
        assert_eq!(result, 0, "the lock of the shared state is broken");
        Guard { mapping: self }
    }

    /// Whether engine `kind` of `gpu` has work, read without the lock.
    pub(crate) fn busy(&self, gpu: usize, kind: usize) -> bool {
        // SAFETY: `busy` is an atomic in a live mapping; no reference to the locked
        // data around it is made.
        let busy = unsafe {
            let shared = (*self.whole.as_ptr()).shared.get();
            let busy = &raw const (*shared).gpus[gpu].engines[kind].busy;
            (*busy).load(std::sync::atomic::Ordering::Relaxed)
        };
        busy != 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this size, and nothing borrows it.
        unsafe { libc::munmap(self.whole.as_ptr().cast(), size_of::<Whole>()) };
    }
}

/// Keeps other openers out. Given back by hand: the mapping keeps the open file,
/// and with it the lock, beyond the descriptor's end.
struct FileLock<'a>(&'a File);

impl FileLock<'_> {
    fn take(file: &File) -> io::Result<FileLock<'_>> {
        // SAFETY: flock on a descriptor that is open.
        match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } {
            0 => Ok(FileLock(file)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for FileLock<'_> {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// The locked data.
pub(crate) struct Guard<'a> {
    mapping: &'a Mapping,
}

impl Deref for Guard<'_> {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        // SAFETY: the lock is held, so nobody else writes.
        unsafe { &*(*self.mapping.whole.as_ptr()).shared.get() }
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Shared {
        // SAFETY: the lock is held, and the guard is borrowed for writing.
        unsafe { &mut *(*self.mapping.whole.as_ptr()).shared.get() }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it in `Mapping::lock`.
        unsafe { libc::pthread_mutex_unlock(self.mapping.lock_pointer()) };
    }
}

/// A `Shared` outside any file, for tests of what works on it.
#[cfg(test)]
pub(crate) fn zeroed_shared() -> Box<Shared> {
    // SAFETY: all of `Shared` is integers, for which zeroes are valid.
    unsafe { Box::<Shared>::new_zeroed().assume_init() }
}
