//! Whole clusters in virtual time: the real scheduler ([`acb_core`]) between made-up clients.
//!
//! Owns: scenarios (what a cluster is, what its clients do, what goes wrong), runs of them, and what comes out.
//! Does not own: the scheduler, files, terminals, clocks, threads: those who run scenarios give text in and write text
//! out. The same scenario with the same seed gives the same report, the same log and the same picture.
//!
//! | modules | are |
//! | --- | --- |
//! | [`scenario`], [`mod@read`] | what is simulated, and how it is read from TOML |
//! | [`random`] | phase times |
//! | [`soak`] | scenarios made up from a seed |
//! | [`world`] | the run: virtual time, nodes, clients, faults, and the invariants after every event |
//! | [`load`] | many nodes without checks, to see what decisions cost |
//! | [`report`], [`bound`] | what came of it, and what could have come at best |
//! | [`timeline`], [`svg`] | the picture of a run |
#![forbid(unsafe_code)]

pub mod bound;
pub mod load;
pub mod random;
pub mod read;
pub mod report;
pub mod scenario;
pub mod soak;
pub mod svg;
pub mod terms;
pub mod timeline;
pub mod world;

pub use read::read;
pub use report::Report;
pub use scenario::Scenario;
pub use world::{Outcome, Watch, run};
