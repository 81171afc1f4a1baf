//! The CUDA driver for the probe: `table` finds the functions, `device` gives them owners,
//! `mapped` is memory mapped chunk by chunk.

pub(crate) mod device;
pub(crate) mod mapped;
pub(crate) mod table;
