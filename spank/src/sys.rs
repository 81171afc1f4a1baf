//! Slurm's interface to its plugins, as its header declares it. Generated; see `scripts/regen`.
//!
//! Nothing is linked for it: the program that loads the plugin has these functions.

// FFI declarations.
#![allow(unsafe_code)]
#![allow(non_camel_case_types, dead_code, missing_docs, unreachable_pub)]

include!("generated/spank.rs");
