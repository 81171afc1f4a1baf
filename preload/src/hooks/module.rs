//! Code is loaded and goes: its variables take memory of the GPU that stays where it is.
//!
//! Owns: the calls; which libraries there are, for each context has their variables. Does not own: reading images (`image`),
//! the account (`memory`).
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)] // Each is called by its export, with the program's arguments.

use super::memory::{current_device, rounded};
use super::{submit, unasked};
use crate::image::{self, Capability, Variables};
use crate::log::{info, warning};
use crate::memory::{Key, LEDGER, Promise, Taken, size};
use crate::table::real;
use crate::work::{WORK, current_context};
use acb_cuda_abi::{CuResult, sys};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::*;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Libraries with variables, and what those take in each context.
static LIBRARIES: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

fn known() -> MutexGuard<'static, BTreeMap<usize, u64>> {
    LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room for variables: of all libraries in one more context, or of one more library in all contexts. Each with the library, or the
/// context, that it is for.
#[derive(Default)]
pub(super) struct Promises(Vec<(usize, Promise)>);

/// `None`: there is no room, and the reason has been told.
pub(super) fn for_context(device: c_int) -> Option<Promises> {
    let wanted = known().iter().map(|(library, bytes)| (*library, device, *bytes)).collect();
    Promises::of("cuLibraryLoad", wanted)
}

/// The same for a library.
fn for_library(symbol: &str, bytes: u64) -> Option<Promises> {
    let contexts = LEDGER.contexts().into_iter();
    Promises::of(symbol, contexts.map(|(context, device)| (context, device, bytes)).collect())
}

impl Promises {
    /// Of so many bytes on these devices.
    fn of(symbol: &str, wanted: Vec<(usize, c_int, u64)>) -> Option<Self> {
        let mut all = Promises::default();
        for (whose, device, bytes) in wanted {
            match LEDGER.reserve_exactly(symbol, device, bytes) {
                Some(promise) => all.0.push((whose, promise)),
                None => {
                    all.forget();
                    return None;
                }
            }
        }
        Some(all)
    }

    /// The context is there.
    pub(super) fn count_context(self, context: usize) {
        for (library, promise) in self.0 {
            LEDGER.allocated(promise, Key::Library(library, context), context);
        }
    }

    /// The library is.
    fn count_library(self, library: sys::CUlibrary, bytes: u64) {
        let library = library as usize;
        for (context, promise) in self.0 {
            LEDGER.allocated(promise, Key::Library(library, context), context);
        }
        known().insert(library, bytes);
    }

    /// It is not.
    pub(super) fn forget(self) {
        self.0.into_iter().for_each(|(_, promise)| LEDGER.forget(promise));
    }
}

/// The compute capability of the GPU in use, or of the first one.
fn capability() -> Option<Capability> {
    let device = current_device().unwrap_or(0);
    let attribute = |number| {
        let mut value: c_int = 0;
        // SAFETY: a place on this stack; CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, …_MINOR.
        let result = unsafe { real::cuDeviceGetAttribute(&raw mut value, number, device) };
        u32::try_from(value).ok().filter(|_| result.is_success())
    };
    Some(attribute(75)? * 10 + attribute(76)?)
}

/// What an image says of its variables.
///
/// # Safety
/// `image` is what cuModuleLoadData takes.
unsafe fn in_memory(image: *const c_void) -> Variables {
    // SAFETY: the caller vouches for it.
    unsafe { image::variables_at(image, capability) }
}

/// The same of an image in a file.
///
/// # Safety
/// `path` is NULL or a string.
unsafe fn in_file(path: *const c_char) -> Variables {
    if path.is_null() {
        return Variables::Bytes(0);
    }
    // SAFETY: not NULL.
    let path = unsafe { CStr::from_ptr(path) };
    let content = std::fs::read(OsStr::from_bytes(path.to_bytes()));
    content.map_or(Variables::Bytes(0), |image| image::variables(&image, capability))
}

/// Loads a module into the current context.
///
/// # Safety
/// `place` is where `call` puts the module when it succeeds.
unsafe fn load_module(
    symbol: &'static str,
    variables: Variables,
    place: *mut sys::CUmodule,
    call: impl Fn() -> CuResult,
) -> CuResult {
    let Some(device) = current_device() else { return call() };
    // SAFETY: read after the call has succeeded.
    let key = || Key::Module(unsafe { place.read() } as usize);
    let promise = match variables {
        Variables::Bytes(0) => return unasked::again(symbol, call),
        Variables::Bytes(bytes) => match LEDGER.reserve_exactly(symbol, device, rounded(bytes)) {
            Some(promise) => promise,
            None => return CuResult::OUT_OF_MEMORY,
        },
        Variables::Unknown => {
            let (result, bytes) = measured(symbol, device, &call);
            if !result.is_success() || bytes == 0 {
                return result;
            }
            match LEDGER.reserve_exactly(symbol, device, bytes) {
                Some(promise) => {
                    LEDGER.allocated(promise, key(), current_context());
                    return result;
                }
                None => {
                    // SAFETY: the call has just put it there.
                    let _ = unsafe { real::cuModuleUnload(place.read()) };
                    return CuResult::OUT_OF_MEMORY;
                }
            }
        }
    };
    let result = unasked::again(symbol, call);
    match result.is_success() {
        true => LEDGER.allocated(promise, key(), current_context()),
        false => LEDGER.forget(promise),
    }
    result
}

/// Loads code of which nobody knows what it takes, and by how much that was more than nothing.
fn measured(symbol: &'static str, device: c_int, call: impl Fn() -> CuResult) -> (CuResult, u64) {
    let taken = Cell::new(None);
    let result = submit::pass_growing(symbol, false, || {
        let before = LEDGER.uncounted(device);
        let result = call();
        let after = before.filter(|_| result.is_success()).and_then(|_| LEDGER.uncounted(device));
        taken.set(before.zip(after).map(|(before, after)| after.since(before)));
        result
    });
    match taken.get() {
        Some(bytes) if bytes >= image::LEAST => {
            info!("{symbol}: the code takes {} of GPU {device}, as measured", size(bytes));
            return (result, rounded(bytes));
        }
        None if result.is_success() => warning!(
            "{symbol}: what the variables of this code take of GPU {device} is not counted, for its image is in a form that is not known \
             here, and NVML cannot tell: other programs may find less memory than they were promised. Build it without compression \
             (nvcc -Xfatbin -compress=false) if it has large variables"
        ),
        _ => {}
    }
    (result, 0)
}

/// Loads a library, which has its variables in all contexts from then on; drivers that load lazily may have them in fewer.
///
/// # Safety
/// `place` is where `call` puts the library when it succeeds.
unsafe fn load_library(
    symbol: &'static str,
    variables: Variables,
    place: *mut sys::CUlibrary,
    call: impl Fn() -> CuResult,
) -> CuResult {
    // SAFETY: read after the call has succeeded.
    let library = || unsafe { place.read() };
    match variables {
        Variables::Bytes(0) => unasked::again(symbol, call),
        Variables::Bytes(bytes) => {
            let bytes = rounded(bytes);
            let Some(promises) = for_library(symbol, bytes) else {
                return CuResult::OUT_OF_MEMORY;
            };
            let result = unasked::again(symbol, call);
            match result.is_success() {
                true => promises.count_library(library(), bytes),
                false => promises.forget(),
            }
            result
        }
        Variables::Unknown => {
            let Some(device) = current_device() else { return call() };
            let (result, bytes) = measured(symbol, device, || {
                let result = call();
                if result.is_success() {
                    let mut module = std::ptr::null_mut();
                    // SAFETY: what was just loaded. Its variables come when a context uses it: this one will.
                    let _ = unsafe { real::cuLibraryGetModule(&raw mut module, library()) };
                }
                result
            });
            if !result.is_success() || bytes == 0 {
                return result;
            }
            let Some(promises) = for_library(symbol, bytes) else {
                // SAFETY: what was just loaded.
                let _ = unsafe { real::cuLibraryUnload(library()) };
                return CuResult::OUT_OF_MEMORY;
            };
            promises.count_library(library(), bytes);
            result
        }
    }
}

pub(crate) unsafe fn cuModuleGetFunction(
    hfunc: *mut sys::CUfunction,
    hmod: sys::CUmodule,
    name: *const c_char,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unasked::again("cuModuleGetFunction", || unsafe {
        real::cuModuleGetFunction(hfunc, hmod, name)
    })
}

pub(crate) unsafe fn cuKernelGetFunction(
    pFunc: *mut sys::CUfunction,
    kernel: sys::CUkernel,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unasked::again("cuKernelGetFunction", || unsafe { real::cuKernelGetFunction(pFunc, kernel) })
}

pub(crate) unsafe fn cuFuncLoad(function: sys::CUfunction) -> CuResult {
    // SAFETY: the program's own argument.
    unasked::again("cuFuncLoad", || unsafe { real::cuFuncLoad(function) })
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
