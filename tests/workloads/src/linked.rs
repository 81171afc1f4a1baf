//! A program that is linked with the driver (`-lcuda`), as nvcc links programs of the driver API.
//!
//! Owns: calling `cuInit` through the link and reporting which library it reached. Included by
//! `loads_linked`, `loads_rpath` and `loads_runpath`, which differ in their linker flags alone (build.rs); not part
//! of the library, for nothing else may depend on libcuda.so.1.
#![allow(unsafe_code)] // FFI: calls through the link.

use std::process::ExitCode;

use acb_workloads::driver::{Driver, file_of};
use acb_workloads::loaded::Loaded;
use acb_workloads::sample;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
}

/// Initialises the driver through the link, then does the sample's work.
pub(crate) fn main(way: &'static str) -> ExitCode {
    let library = file_of(cuInit as *const () as usize).unwrap_or_else(|| "?".into());
    // SAFETY: cuInit takes any flags.
    let code = unsafe { cuInit(0) };
    let result = if code != 0 {
        format!("cuInit failed: {code}")
    } else {
        let work = Driver::open("libcuda.so.1")
            .map_err(Into::into)
            .and_then(|driver| sample::run(&driver, 1));
        work.map_or_else(|error| error.to_string(), |()| "ok".into())
    };
    let loaded = Loaded::new(way, library, result);
    loaded.print();
    loaded.exit_code()
}
