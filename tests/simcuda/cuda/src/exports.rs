//! What programs link to: every symbol of the driver, from the one list in
//! `acb-cuda-abi`. Those that `calls` does not have answer CUDA_ERROR_NOT_SUPPORTED.
//! Owns the border: panics stop here. No logic.
#![allow(unsafe_code)] // exports C functions
#![allow(clippy::too_many_arguments, clippy::missing_safety_doc)] // the driver's signatures

use std::ffi::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

use acb_cuda_abi::{CuResult, driver_functions, sys};

use crate::code::{Outcome, SUCCESS, UNKNOWN};

/// Addresses of the exports, in the order of `acb_cuda_abi::FUNCTIONS`.
pub(crate) fn address(index: usize) -> Option<*mut c_void> {
    ADDRESSES.get(index).map(|address| address.0.cast_mut().cast())
}

struct Address(*const ());
// SAFETY: the address of a function; it is never written through.
unsafe impl Sync for Address {}

fn guard(symbol: &str, call: impl FnOnce() -> Outcome) -> CuResult {
    crate::loading::enter();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => {
            crate::driver::say(&format!("simcuda: internal error in {symbol}; please report it"));
            UNKNOWN
        }
    }
}

macro_rules! exports {
    ($([$class:ident] $symbol:ident $text:literal $name:literal $version:literal $form:ident
       ($($parameters:tt)*);)*) => {
        #[allow(dead_code)] // used where `calls` has nothing
        mod fallback {
            use super::*;
            $(one!(fallback $symbol $text [] $($parameters)*);)*
        }
        $(one!(export $symbol $text [] $($parameters)*);)*
        static ADDRESSES: &[Address] = &[$(Address($symbol as *const ())),*];
    };
}

/// Goes through the parameters; two of the headers' names are words of Rust.
macro_rules! one {
    ($what:ident $symbol:ident $text:literal [$($done:tt)*] fn: $t:ty $(, $($rest:tt)*)?) => {
        one!($what $symbol $text [$($done)* (function: $t)] $($($rest)*)?);
    };
    ($what:ident $symbol:ident $text:literal [$($done:tt)*] mod: $t:ty $(, $($rest:tt)*)?) => {
        one!($what $symbol $text [$($done)* (module: $t)] $($($rest)*)?);
    };
    ($what:ident $symbol:ident $text:literal [$($done:tt)*] $p:ident: $t:ty $(, $($rest:tt)*)?) => {
        one!($what $symbol $text [$($done)* ($p: $t)] $($($rest)*)?);
    };
    (fallback $symbol:ident $text:literal [$(($p:ident: $t:ty))*]) => {
        pub(super) unsafe fn $symbol($($p: $t),*) -> Outcome {
            let _ = ($($p,)*);
            crate::calls::unsupported($text)
        }
    };
    (export $symbol:ident $text:literal [$(($p:ident: $t:ty))*]) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol($($p: $t),*) -> CuResult {
            #[allow(unused_imports)]
            use fallback::*;
            {
                // Inner names hide outer ones: what `calls` has goes first.
                #[allow(unused_imports)]
                use crate::calls::all::*;
                // SAFETY: the program keeps the contract of the driver's API.
                guard($text, || unsafe { $symbol($($p),*) })
            }
        }
    };
}

driver_functions!(exports);
