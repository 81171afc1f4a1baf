//! What the small CUDA programs of the tests share.
//!
//! Owns: clocks ([`clock`]), a tiny loader of the driver ([`driver`]), the PTX of the kernels ([`kernels`]), what those
//! kernels must leave behind ([`mod@reference`]), memory whose content is known to the byte ([`memory`]), the lengths of
//! phases ([`timing`]).
//! Does not own: anything of slurm-acb. These programs know nothing of it, which is their point.

pub mod clock;
pub mod content;
pub mod driver;
pub mod fork;
pub mod kernels;
pub mod loaded;
pub mod memory;
pub mod quantities;
pub mod reference;
pub mod rounds;
pub mod sample;
pub mod timing;
