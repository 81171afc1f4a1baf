//! The messages of slurm-acb and the frames that carry them on the client socket.
//!
//! Owns: the generated messages ([`v1`]), and the length-delimited codec ([`frame`]).
//! Does not own: sockets. Nothing here blocks, and nothing here needs tokio or tonic, for this
//! crate is linked into the interposer.
#![forbid(unsafe_code)]

pub mod frame;
#[path = "generated/acb.v1.rs"]
#[rustfmt::skip] // as generated: scripts/regen --check compares
#[allow(missing_docs, clippy::all)]
pub mod v1;

/// Version of the protocol that this crate speaks, for [`v1::Hello::protocol`].
pub const PROTOCOL: u32 = 1;
