//! A `libnvidia-ml.so.1` that stands before the driver's, inside clients.
//!
//! ```text
//!  program ──> exports ──> memory, processes, numbers ──> the interposer (libcuda.so.1 of this process)
//!                 │                └────────────────────> the real NVML
//!                 └── trampolines ──────────────────────> the real NVML (`library`)
//! ```
//!
//! NVML tells a GPU's memory as it is for everybody. A program under the interposer is told by
//! cuMemGetInfo that it is alone there; from NVML it must hear the same. So this library answers
//! nvmlDeviceGetMemoryInfo for the client's own GPUs, and in the lists of running processes what this
//! process has there; and the client's GPUs have the numbers that `CUDA_VISIBLE_DEVICES` gives them. All else is passed on.
//!
//! Owns: every exported symbol of NVML, finding the real one. Does not own: the numbers, which the
//! interposer gives through `acb_memory_v1` and `acb_ordinal_v1`; where that is not (no interposer, no client, another
//! GPU), NVML's answer stays.
//!
//! Rules of this crate: nothing happens when it is loaded; nothing but libc; a panic never leaves.

mod exports;
mod library;
mod memory;
mod numbers;
mod processes;

#[rustfmt::skip]
mod generated {
    pub(crate) mod functions;
}
