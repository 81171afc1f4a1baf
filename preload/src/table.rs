//! The table through which every call reaches the driver, and typed calls through it.
//!
//! Owns: one slot a symbol, zero until first used; the resolver that fills a slot; [`real`], the
//! driver's functions as the interposer itself calls them; what is called where the driver has
//! nothing.
//! Does not own: finding the driver (`driver`), or what programs see (`exports`).
#![allow(unsafe_code)] // FFI: calls through addresses that the dynamic linker gave.

use crate::driver;
use crate::log::{debug, error, warning};
use acb_cuda_abi::{CuResult, FUNCTIONS, driver_functions};
use std::ffi::{CString, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the interposer's trampolines are written for Linux on x86-64 alone");

/// Address to call for each symbol of [`FUNCTIONS`]; 0: not resolved yet.
pub(crate) static SLOTS: [AtomicUsize; FUNCTIONS.len()] =
    [const { AtomicUsize::new(0) }; FUNCTIONS.len()];

/// Address to call for the symbol at `index`: the driver's, or a function that returns an error.
#[inline(always)]
pub(crate) fn target(index: usize) -> usize {
    match SLOTS[index].load(Ordering::Acquire) {
        0 => resolve(index),
        address => address,
    }
}

/// What the interposer asks for by itself, and does without where a driver lacks it.
const OPTIONAL: [&str; 13] = [
    "cuDeviceCanAccessPeer",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceGetGraphMemAttribute",
    "cuDeviceGetMemPool",
    "cuDeviceGraphMemTrim",
    "cuFuncGetName",
    "cuGetProcAddress_v2",
    "cuKernelGetName",
    "cuLibraryGetModule",
    "cuMemGetAccess",
    "cuMemPoolGetAttribute",
    "cuStreamGetCaptureInfo_v2",
    "cuThreadExchangeStreamCaptureMode",
];

/// Where the driver has each symbol of [`FUNCTIONS`]; 0: it lacks it.
static FOUND: OnceLock<Box<[usize]>> = OnceLock::new();

/// Looks all symbols up, in cuInit: from then on no thread of the interposer's waits in `dlsym` for the end of a `dlopen` of the
/// program's.
pub(crate) fn find_all() {
    if let Some(handle) = driver::handle() {
        let find = |symbol| driver_symbol(handle, symbol).unwrap_or(0);
        FOUND.get_or_init(|| FUNCTIONS.iter().map(|function| find(function.symbol)).collect());
    }
}

fn found(handle: &driver::Handle, index: usize) -> Option<usize> {
    match FOUND.get() {
        Some(found) => Some(found[index]).filter(|address| *address != 0),
        None => driver_symbol(handle, FUNCTIONS[index].symbol),
    }
}

/// Fills a slot. Two threads may do so at once; they write the same.
#[cold]
#[inline(never)]
pub(crate) extern "C" fn resolve(index: usize) -> usize {
    let function = &FUNCTIONS[index];
    let address = match driver::handle() {
        Some(handle) => match found(handle, index) {
            Some(address) => {
                debug!("first use of {}", function.symbol);
                address
            }
            None => {
                let (symbol, path) = (function.symbol, &handle.path);
                match OPTIONAL.contains(&symbol) {
                    true => debug!("{symbol} is not in {path}"),
                    false => warning!(
                        "{symbol} is not in the driver {path}, and returns CUDA_ERROR_NOT_SUPPORTED: update the driver if the \
                         program needs it"
                    ),
                }
                not_supported as *const () as usize
            }
        },
        None => no_driver as *const () as usize,
    };
    // A fork has put `detached` there in the meantime: it stays.
    match SLOTS[index].compare_exchange(0, address, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => address,
        Err(already) => already,
    }
}

/// The driver's own address of a symbol, without going through the table.
pub(crate) fn driver_symbol(handle: &driver::Handle, symbol: &str) -> Option<usize> {
    let name = CString::new(symbol).ok()?;
    // SAFETY: the handle was opened by dlopen and is never closed; the name ends in NUL.
    let address = unsafe { libc::dlsym(handle.raw(), name.as_ptr()) };
    (!address.is_null()).then_some(address as usize)
}

/// Remembers an address that the driver itself gave for a symbol that it does not export.
pub(crate) fn learn(index: usize, address: *mut c_void) {
    if driver::handle().is_none_or(|handle| found(handle, index).is_some()) {
        return;
    }
    let missing = not_supported as *const () as usize;
    for empty in [0, missing] {
        let (done, failed) = (Ordering::AcqRel, Ordering::Acquire);
        let _ = SLOTS[index].compare_exchange(empty, address as usize, done, failed);
    }
}

/// From now on every call that needs cuInit fails with CUDA_ERROR_NOT_INITIALIZED: what a driver answers in a child
/// that was forked after cuInit. Runs in that child, so it takes no lock and allocates nothing.
pub(crate) fn detach() {
    for (index, slot) in SLOTS.iter().enumerate() {
        let answer = match WITHOUT_INIT.iter().any(|known| *known as usize == index) {
            true => FOUND.get().map_or(0, |found| found[index]),
            false => 0,
        };
        let answer = if answer == 0 { detached as *const () as usize } else { answer };
        slot.store(answer, Ordering::Release);
    }
}

/// What needs no cuInit, and so works in such a child, too.
const WITHOUT_INIT: [Index; 3] =
    [Index::cuDriverGetVersion, Index::cuGetErrorName, Index::cuGetErrorString];

extern "C" fn not_supported() -> CuResult {
    CuResult::NOT_SUPPORTED
}

extern "C" fn no_driver() -> CuResult {
    CuResult::NO_DEVICE
}

extern "C" fn detached() -> CuResult {
    tell_detached();
    CuResult::NOT_INITIALIZED
}

/// Says once why CUDA does not work in this process.
pub(crate) fn tell_detached() {
    use std::sync::atomic::AtomicBool;
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        error!(
            "CUDA was used in a process that was forked after cuInit: CUDA_ERROR_NOT_INITIALIZED, as without \
             slurm-acb; fork before the first CUDA call, or start the child with exec \
             (Python: multiprocessing.set_start_method(\"spawn\"))"
        );
    }
}

macro_rules! real_functions {
    ($([$class:ident] $symbol:ident $text:literal $name:literal $version:literal $form:ident
       ($($parameter:ident: $kind:ty),*);)*) => {
        /// Position of each symbol in the table.
        #[allow(non_camel_case_types, dead_code, clippy::enum_variant_names)]
        #[derive(Clone, Copy)]
        pub(crate) enum Index { $($symbol),* }

        /// The driver's functions. What is not used costs nothing.
        #[allow(non_snake_case, dead_code, clippy::missing_safety_doc, clippy::too_many_arguments)]
        pub(crate) mod real {
            use super::{Index, target};
            use acb_cuda_abi::{CuResult, sys};
            #[allow(unused_imports)]
            use std::ffi::*;

            $(
                #[inline(always)]
                pub(crate) unsafe fn $symbol($($parameter: $kind),*) -> CuResult {
                    // SAFETY: the slot holds the driver's function of this very signature, or one
                    // that ignores its arguments; what the arguments point to is the caller's.
                    unsafe {
                        let call: unsafe extern "C" fn($($kind),*) -> CuResult =
                            std::mem::transmute(target(Index::$symbol as usize));
                        call($($parameter),*)
                    }
                }
            )*
        }
    };
}

driver_functions!(real_functions);
