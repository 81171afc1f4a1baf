//! What happens in the calls that the interposer acts on; one file a class of the one list.
//!
//! The functions here carry the symbols' own names, for `exports` finds them by name.

pub(crate) mod capture;
pub(crate) mod context;
pub(crate) mod copy;
pub(crate) mod graph;
pub(crate) mod green;
pub(crate) mod mapping;
pub(crate) mod memory;
pub(crate) mod module;
pub(crate) mod pool;
pub(crate) mod query;
pub(crate) mod resolve;
pub(crate) mod share;
pub(crate) mod stream;
pub(crate) mod submit;
pub(crate) mod unasked;
pub(crate) mod wait;
