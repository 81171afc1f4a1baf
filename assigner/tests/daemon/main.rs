//! The real programs, as a user runs them: every command, every way a client can misbehave, two
//! nodes. Each test has a home folder, a port and software GPUs of its own.
//!
//! Waits are for conditions with a deadline; no time is asserted.

mod commands;
mod gangs;
mod launcher;
mod manual;
mod memory;
mod misbehaviour;
mod multinode;
mod nodes;
mod restart;
mod standing;
mod support;
mod topology;
