//! End-to-end tests of slurm-acb, the benchmarks and the quickstart: what runs the product's
//! programs and looks at them from outside.
//!
//! Owns: [`lab`], a private Slurm; [`mod@bench`], what is measured. Does not own: the workloads, the software GPU.

pub mod bench;
pub mod lab;
