//! Memory that stands for a GPU's: ordinary pages of the host, empty until they
//! are touched, at addresses that programs are not told. And address ranges
//! without memory, which is what programs get: to touch one is a fault.
#![allow(unsafe_code)] // mmap

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::code::{INVALID_VALUE, OPERATING_SYSTEM, OUT_OF_MEMORY, Outcome};
use crate::driver;

/// A huge page of the host.
const HUGE: usize = 2 << 20;

/// How files behind memory are called; the GPU's number follows.
const NAME: &str = "simcuda-";

/// A piece of a GPU's memory; counted as used until the last owner lets go.
pub(crate) struct Physical {
    base: *mut u8,
    length: usize,
    gpu: usize,
    /// Another process's: it counts there.
    foreign: bool,
    /// The file behind it, once other processes may open it.
    file: Mutex<Option<OwnedFd>>,
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
        match map_aligned(length) {
            Some(base) => {
                let (base, file) = (base as *mut u8, Mutex::new(None));
                Ok(Arc::new(Physical { base, length, gpu, foreign: false, file }))
            }
            None => {
                driver.state.give_back(driver.charge, gpu, length as u64);
                Err(OUT_OF_MEMORY)
            }
        }
    }

    /// The same with a file behind it from the start.
    pub(crate) fn new_shareable(gpu: usize, length: usize) -> Outcome<Arc<Physical>> {
        let memory = Physical::new(gpu, length)?;
        memory.put_file(|file| file.set_len(length as u64))?;
        Ok(memory)
    }

    /// Puts a file behind the memory, for other processes to open; its number. No
    /// work may be under way in it.
    pub(crate) fn share(&self) -> Outcome<RawFd> {
        // SAFETY: the pages are there, and nothing works in them.
        let content = unsafe { std::slice::from_raw_parts(self.base.cast_const(), self.length) };
        self.put_file(|file| file.write_all_at(content, 0))
    }

    fn put_file(&self, fill: impl FnOnce(&File) -> std::io::Result<()>) -> Outcome<RawFd> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*file {
            return Ok(file.as_raw_fd());
        }
        // The name tells an importer of the descriptor which GPU it is.
        let new = anonymous_file(&format!("{NAME}{}", self.gpu))?;
        fill(&new).map_err(|_| OPERATING_SYSTEM)?;
        // SAFETY: in the place of pages that are this object's own.
        let mapped = unsafe { map_file(&new, self.length, self.base.cast()) };
        mapped.ok_or(OPERATING_SYSTEM)?;
        Ok(file.insert(OwnedFd::from(new)).as_raw_fd())
    }

    /// Memory that another process shares under a number of its own.
    pub(crate) fn import(
        pid: u32,
        number: RawFd,
        length: usize,
        gpu: usize,
    ) -> Outcome<Arc<Physical>> {
        let file = file_of(pid, number, &format!("{NAME}{gpu}"))?;
        if file.metadata().map_err(|_| INVALID_VALUE)?.len() != length as u64 {
            return Err(INVALID_VALUE);
        }
        Physical::foreign(file, length, gpu)
    }

    /// What lies behind a descriptor of the program's, which is the driver's from now on.
    pub(crate) fn adopt(number: RawFd, length: usize, gpu: usize) -> Outcome<Arc<Physical>> {
        let path = format!("/proc/self/fd/{number}");
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|_| INVALID_VALUE)?;
        if file.metadata().map_err(|_| INVALID_VALUE)?.len() < length as u64 {
            return Err(INVALID_VALUE);
        }
        let memory = Physical::foreign(file, length, gpu)?;
        // SAFETY: the program has given it up with this call.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        Ok(memory)
    }

    fn foreign(file: File, length: usize, gpu: usize) -> Outcome<Arc<Physical>> {
        // SAFETY: at an address of the system's choice.
        let base = unsafe { map_file(&file, length, std::ptr::null_mut()) };
        let base = base.ok_or(OUT_OF_MEMORY)?.cast();
        let file = Mutex::new(Some(OwnedFd::from(file)));
        Ok(Arc::new(Physical { base, length, gpu, foreign: true, file }))
    }

    /// Whether it is another process's or another library's, who may hand it on.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// A descriptor of the file behind the memory, for the program; none, if there is none.
    pub(crate) fn descriptor(&self) -> Outcome<RawFd> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = file.as_ref().ok_or(INVALID_VALUE)?.try_clone();
        copy.map(IntoRawFd::into_raw_fd).map_err(|_| OPERATING_SYSTEM)
    }

    /// Memory behind a descriptor that some process was given.
    pub(crate) fn import_descriptor(number: RawFd) -> Outcome<Arc<Physical>> {
        let own = std::process::id();
        let name = name_of(own, number).ok_or(INVALID_VALUE)?;
        let gpu = name.strip_prefix(NAME).and_then(|gpu| gpu.parse().ok()).ok_or(INVALID_VALUE)?;
        let path = format!("/proc/self/fd/{number}");
        let length = std::fs::metadata(path).map_err(|_| INVALID_VALUE)?.len() as usize;
        Physical::import(own, number, length, gpu)
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
        if !self.foreign
            && let Ok(driver) = driver::get()
        {
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

/// A file in memory that other processes can open by its number here.
pub(crate) fn anonymous_file(name: &str) -> Outcome<File> {
    let name = CString::new(name).map_err(|_| OPERATING_SYSTEM)?;
    // SAFETY: a name that ends; the descriptor is new, or negative.
    let number = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if number < 0 {
        return Err(OPERATING_SYSTEM);
    }
    // SAFETY: just made, and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// How such a file is called, if it is one.
fn name_of(pid: u32, number: RawFd) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
    let name = link.to_string_lossy().into_owned();
    Some(name.strip_prefix("/memfd:")?.split(' ').next()?.to_owned())
}

/// The file that a process has under a number, if it is called so.
pub(crate) fn file_of(pid: u32, number: RawFd, name: &str) -> Outcome<File> {
    if name_of(pid, number).as_deref() != Some(name) {
        return Err(INVALID_VALUE);
    }
    let path = format!("/proc/{pid}/fd/{number}");
    OpenOptions::new().read(true).write(true).open(path).map_err(|_| INVALID_VALUE)
}

/// Maps a file's pages; at an address if one is given, instead of what is there.
///
/// # Safety
/// The address is null, or that of as many pages of the caller's own.
pub(crate) unsafe fn map_file(
    file: &File,
    length: usize,
    at: *mut libc::c_void,
) -> Option<*mut libc::c_void> {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller vouches for the address; the file is open.
    let mapped = unsafe {
        libc::mmap(at, length, protection, libc::MAP_SHARED | fixed, file.as_raw_fd(), 0)
    };
    (mapped != libc::MAP_FAILED).then_some(mapped)
}

/// Memory in huge pages where it fills some: to fault small ones in one by one would take longer than the time that is
/// modelled for it.
fn map_aligned(length: usize) -> Option<u64> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    if !length.is_multiple_of(HUGE) {
        return map(length, protection);
    }
    let whole = length + HUGE;
    let start = map(whole, protection)?;
    let base = start.next_multiple_of(HUGE as u64);
    let (before, behind) =
        ((base - start) as usize, (start + whole as u64 - base) as usize - length);
    for (from, bytes) in [(start, before), (base + length as u64, behind)] {
        if bytes > 0 {
            unmap(from, bytes);
        }
    }
    // SAFETY: the mapping just made; advice that need not be taken.
    unsafe { libc::madvise(base as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
    Some(base)
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
