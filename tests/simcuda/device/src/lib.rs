//! The software GPU's devices: what `libcuda.so.1` and `libnvidia-ml.so.1` of
//! this folder have in common. Owns the configuration file, the state that all
//! processes of a user share (memory in use, engines in time), and the rules of
//! `CUDA_VISIBLE_DEVICES`. Knows nothing of the driver's API.

pub mod clock;
pub mod config;
pub mod connection;
pub mod engine;
pub mod fault;
pub mod identity;
pub mod layout;
pub mod liveness;
mod mapping;
pub mod state;
pub mod visible;

pub use config::{Config, ConfigError, GpuConfig};
pub use state::{Charge, State, StateError};

/// A moment or a length of modelled time, in nanoseconds of `CLOCK_MONOTONIC`.
pub type Nanos = u64;
