//! Code is loaded and goes: its variables take memory of the GPU that stays where it is.
//!
//! Owns: the calls; which libraries there are, for each context has their variables. Does not own: reading images (`image`),
//! the account (`memory`).
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)] // Each is called by its export, with the program's arguments.

use super::memory::{current_device, rounded};
use crate::image;
use crate::memory::{Key, LEDGER, Promise, Taken};
use crate::table::real;
use crate::work::{WORK, current_context};
use acb_cuda_abi::{CuResult, sys};
use std::collections::BTreeMap;
use std::ffi::*;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Libraries with variables, and what those take in each context.
static LIBRARIES: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

fn known() -> MutexGuard<'static, BTreeMap<usize, u64>> {
    LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room for the variables of all libraries in one more context.
#[derive(Default)]
pub(super) struct Libraries(Vec<(usize, Promise)>);

/// `None`: there is no room, and the reason has been told.
pub(super) fn for_context(device: c_int) -> Option<Libraries> {
    let mut all = Libraries::default();
    let known: Vec<(usize, u64)> = known().iter().map(|(it, bytes)| (*it, *bytes)).collect();
    for (library, bytes) in known {
        match LEDGER.reserve_exactly("cuLibraryLoad", device, bytes) {
            Some(promise) => all.0.push((library, promise)),
            None => {
                all.forget();
                return None;
            }
        }
    }
    Some(all)
}

impl Libraries {
    /// The context is there.
    pub(super) fn count(self, context: usize) {
        for (library, promise) in self.0 {
            LEDGER.allocated(promise, Key::Library(library, context), context);
        }
    }

    /// It is not.
    pub(super) fn forget(self) {
        self.0.into_iter().for_each(|(_, promise)| LEDGER.forget(promise));
    }
}

/// The bytes of an image's variables.
///
/// # Safety
/// `image` is what cuModuleLoadData takes.
unsafe fn in_memory(image: *const c_void) -> u64 {
    // SAFETY: the caller vouches for it.
    rounded(unsafe { image::variables_at(image) })
}

/// The same of an image in a file.
///
/// # Safety
/// `path` is NULL or a string.
unsafe fn in_file(path: *const c_char) -> u64 {
    if path.is_null() {
        return 0;
    }
    // SAFETY: not NULL.
    let path = unsafe { CStr::from_ptr(path) };
    let content = std::fs::read(OsStr::from_bytes(path.to_bytes()));
    content.map_or(0, |image| rounded(image::variables(&image)))
}

/// Loads a module into the current context.
///
/// # Safety
/// `place` is where `call` puts the module when it succeeds.
unsafe fn load_module(
    symbol: &str,
    bytes: u64,
    place: *const sys::CUmodule,
    call: impl FnOnce() -> CuResult,
) -> CuResult {
    let Some(device) = current_device().filter(|_| bytes > 0) else { return call() };
    let Some(promise) = LEDGER.reserve_exactly(symbol, device, bytes) else {
        return CuResult::OUT_OF_MEMORY;
    };
    let result = call();
    match result.is_success() {
        true => {
            // SAFETY: the call succeeded.
            let module = unsafe { place.read() } as usize;
            LEDGER.allocated(promise, Key::Module(module), current_context());
        }
        false => LEDGER.forget(promise),
    }
    result
}

/// Loads a library, which has its variables in all contexts from then on; drivers that load lazily may have them in fewer.
///
/// # Safety
/// `place` is where `call` puts the library when it succeeds.
unsafe fn load_library(
    symbol: &str,
    bytes: u64,
    place: *const sys::CUlibrary,
    call: impl FnOnce() -> CuResult,
) -> CuResult {
    if bytes == 0 {
        return call();
    }
    let mut promises = Vec::new();
    let forget = |promises: Vec<(usize, Promise)>| {
        promises.into_iter().for_each(|(_, promise)| LEDGER.forget(promise));
    };
    for (context, device) in LEDGER.contexts() {
        match LEDGER.reserve_exactly(symbol, device, bytes) {
            Some(promise) => promises.push((context, promise)),
            None => {
                forget(promises);
                return CuResult::OUT_OF_MEMORY;
            }
        }
    }
    let result = call();
    if !result.is_success() {
        forget(promises);
        return result;
    }
    // SAFETY: the call succeeded.
    let library = unsafe { place.read() } as usize;
    for (context, promise) in promises {
        LEDGER.allocated(promise, Key::Library(library, context), context);
    }
    known().insert(library, bytes);
    result
}

pub(crate) unsafe fn cuModuleLoad(module: *mut sys::CUmodule, fname: *const c_char) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        load_module("cuModuleLoad", in_file(fname), module, || real::cuModuleLoad(module, fname))
    }
}

pub(crate) unsafe fn cuModuleLoadData(
    module: *mut sys::CUmodule,
    image: *const c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        load_module("cuModuleLoadData", in_memory(image), module, || {
            real::cuModuleLoadData(module, image)
        })
    }
}

pub(crate) unsafe fn cuModuleLoadDataEx(
    module: *mut sys::CUmodule,
    image: *const c_void,
    numOptions: c_uint,
    options: *mut c_uint,
    optionValues: *mut *mut c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        load_module("cuModuleLoadDataEx", in_memory(image), module, || {
            real::cuModuleLoadDataEx(module, image, numOptions, options, optionValues)
        })
    }
}

pub(crate) unsafe fn cuModuleLoadFatBinary(
    module: *mut sys::CUmodule,
    fatCubin: *const c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        load_module("cuModuleLoadFatBinary", in_memory(fatCubin), module, || {
            real::cuModuleLoadFatBinary(module, fatCubin)
        })
    }
}

pub(crate) unsafe fn cuLibraryLoadData(
    library: *mut sys::CUlibrary,
    code: *const c_void,
    jitOptions: *mut c_uint,
    jitOptionsValues: *mut *mut c_void,
    numJitOptions: c_uint,
    libraryOptions: *mut c_uint,
    libraryOptionValues: *mut *mut c_void,
    numLibraryOptions: c_uint,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        load_library("cuLibraryLoadData", in_memory(code), library, || {
            real::cuLibraryLoadData(
                library,
                code,
                jitOptions,
                jitOptionsValues,
                numJitOptions,
                libraryOptions,
                libraryOptionValues,
                numLibraryOptions,
            )
        })
    }
}

pub(crate) unsafe fn cuLibraryLoadFromFile(
    library: *mut sys::CUlibrary,
    fileName: *const c_char,
    jitOptions: *mut c_uint,
    jitOptionsValues: *mut *mut c_void,
    numJitOptions: c_uint,
    libraryOptions: *mut c_uint,
    libraryOptionValues: *mut *mut c_void,
    numLibraryOptions: c_uint,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        load_library("cuLibraryLoadFromFile", in_file(fileName), library, || {
            real::cuLibraryLoadFromFile(
                library,
                fileName,
                jitOptions,
                jitOptionsValues,
                numJitOptions,
                libraryOptions,
                libraryOptionValues,
                numLibraryOptions,
            )
        })
    }
}

/// Functions go with their module, and so do its variables.
pub(crate) unsafe fn cuModuleUnload(hmod: sys::CUmodule) -> CuResult {
    WORK.forget_kernel();
    let variables = LEDGER.take(Key::Module(hmod as usize));
    // SAFETY: the program's own argument.
    settle(variables, unsafe { real::cuModuleUnload(hmod) })
}

pub(crate) unsafe fn cuLibraryUnload(library: sys::CUlibrary) -> CuResult {
    WORK.forget_kernel();
    let bytes = known().remove(&(library as usize));
    let contexts = if bytes.is_some() { LEDGER.contexts() } else { Vec::new() };
    let variables: Vec<Taken> = contexts
        .into_iter()
        .filter_map(|(context, _)| LEDGER.take(Key::Library(library as usize, context)))
        .collect();
    // SAFETY: the program's own argument.
    let result = settle(variables, unsafe { real::cuLibraryUnload(library) });
    if let Some(bytes) = bytes.filter(|_| !result.is_success()) {
        known().insert(library as usize, bytes);
    }
    result
}

/// What was taken out of the books is gone if the call says so.
fn settle(variables: impl IntoIterator<Item = Taken>, result: CuResult) -> CuResult {
    for taken in variables {
        match result.is_success() {
            true => LEDGER.freed(taken),
            false => LEDGER.put_back(taken),
        }
    }
    result
}
