//! Benchmarks and the quickstart: what a run of phases achieved, and how that is shown.
//!
//! Owns: the records of the program `phases` ([`record`]), what follows from them ([`analysis`]),
//! their picture ([`timeline`]). Does not own: the cluster that they run on ([`crate::lab`]).

pub mod analysis;
pub mod apart;
pub mod b1;
pub mod client;
pub mod clock;
pub mod figure;
pub mod interrupt;
pub mod machine;
pub mod measure;
pub mod outside;
pub mod paging;
pub mod played;
pub mod quickstart;
pub mod record;
pub mod scale;
pub mod simulated;
pub mod status;
pub mod system;
pub mod terminal;
pub mod timeline;
pub mod wire_client;
