//! What the small CUDA programs of the tests share.
//!
//! Owns: clocks ([`clock`]), a tiny loader of the driver ([`driver`]), the PTX of the kernels ([`kernels`]), what those
//! kernels must leave behind ([`mod@reference`]), the lengths of phases ([`timing`]).
//! Does not own: anything of slurm-acb. These programs know nothing of it, which is their point.

pub mod clock;
pub mod driver;
pub mod fork;
pub mod kernels;
pub mod loaded;
pub mod reference;
pub mod sample;
pub mod timing;
