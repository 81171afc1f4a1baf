//! The interposer: a `libcuda.so.1` that stands before the driver's, inside other people's programs.
//!
//! ```text
//!  program ──> exports ──> hooks ──> gate ──> driver (the real libcuda.so.1, opened by path)
//!                 │          │        ▲
//!                 │          │        │ opens, closes
//!                 │          └──────> link ──── socket ──── the node's assigner
//!                 └── trampolines ──> driver
//! ```
//!
//! Owns: every exported symbol (`exports`, `table`), finding the real driver (`driver`), the start
//! of a client (`process`), the gate, the link thread, device memory that moves (`pager`),
//! the account of what does not (`memory`, `graphs`, `image`) and of what may still be running (`work`).
//! Does not own: who gets which GPU, and for how long. That is the assigner's.
//!
//! Rules of this crate: nothing happens when the library is loaded; no thread before `cuInit`; no
//! lock is held across a driver call or a wait on a socket; a panic never leaves it; what is
//! unknown passes through unchanged.

mod driver;
mod environment;
mod exports;
mod gate;
mod graphs;
mod greens;
mod hooks;
mod image;
mod ipc;
mod lease;
mod link;
mod log;
mod memory;
mod newer;
mod nvml;
mod pager;
mod paths;
mod process;
mod settings;
mod shared_pools;
mod table;
mod visible;
mod work;
