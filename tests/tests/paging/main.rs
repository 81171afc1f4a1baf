//! Programs under the interposer whose memory together exceeds the GPU's, with a user's own assigner and
//! software GPUs.
//!
//! Owns: that not a byte is wrong, that what can be done is done, and that faults harm nobody else. Does not
//! own: how fast any of it is (scripts/bench). Needs an installation with tests, named by ACB_PREFIX.

mod arena;
mod bounds;
mod contexts;
mod contract;
mod endings;
mod faults;
mod fixed;
mod kinds;
mod limits;
mod shared;
mod sharing;
mod stage;
mod unasked;
