//! The software GPU's `libnvidia-ml.so.1`: which GPUs there are, their memory,
//! who uses it, and how busy they are. Shows all GPUs, whatever
//! `CUDA_VISIBLE_DEVICES` says, as the real one does.
#![allow(unsafe_code)] // exports C functions
#![allow(non_snake_case)] // the library's functions keep their names

mod connection;
mod device;
mod library;

use std::ffi::{c_char, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use simcuda_device::{Config, State};

const SUCCESS: c_uint = 0;
const UNINITIALIZED: c_uint = 1;
const INVALID_ARGUMENT: c_uint = 2;
const NOT_SUPPORTED: c_uint = 3;
const NOT_FOUND: c_uint = 6;
const INSUFFICIENT_SIZE: c_uint = 7;
const DRIVER_NOT_LOADED: c_uint = 9;
const ARGUMENT_VERSION_MISMATCH: c_uint = 25;
const UNKNOWN: c_uint = 999;

/// What a function gives, or NVML's code for why not.
type Outcome<T = ()> = Result<T, c_uint>;

/// The GPUs, opened by `nvmlInit` and closed by the last `nvmlShutdown`.
struct Session {
    config: Config,
    state: State,
}

static SESSION: Mutex<(u32, Option<Arc<Session>>)> = Mutex::new((0, None));

fn session() -> Outcome<Arc<Session>> {
    let session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    session.1.clone().ok_or(UNINITIALIZED)
}

fn open() -> Outcome {
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    if session.1.is_none() {
        let config = Config::load().map_err(|error| complain(&error))?;
        let state = State::open(&config).map_err(|error| complain(&error))?;
        session.1 = Some(Arc::new(Session { config, state }));
    }
    session.0 += 1;
    Ok(())
}

fn close() -> Outcome {
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    session.0 = session.0.checked_sub(1).ok_or(UNINITIALIZED)?;
    if session.0 == 0 {
        session.1 = None;
    }
    Ok(())
}

/// NVML has codes, not messages; people need to know what is wrong with the file.
fn complain(error: &dyn std::fmt::Display) -> c_uint {
    use std::io::Write;
    // A closed stderr is the program's choice.
    let _ = writeln!(std::io::stderr(), "{error}");
    DRIVER_NOT_LOADED
}

/// Keeps panics inside.
fn guard(call: impl FnOnce() -> Outcome) -> c_uint {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => UNKNOWN,
    }
}

/// # Safety
/// `to` is null or may be written.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, so the caller vouches for it.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// # Safety
/// `to` is null or has room for `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Outcome {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and the zero after it fit.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

macro_rules! exports {
    ($($(#[$meta:meta])* fn $name:ident($($p:ident: $t:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe)]
        pub(crate) unsafe extern "C" fn $name($($p: $t),*) -> std::ffi::c_uint {
            // SAFETY: the program's pointers are null, which is checked, or good for
            // what the documentation of this function says.
            crate::guard(|| unsafe { $body })
        }
    )*};
}
use exports;
