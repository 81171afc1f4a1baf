//! The driver's functions. One file a group; each function takes what C gives,
//! checks it, and hands values to the rest of the library.
#![allow(unsafe_code)] // macros for FFI functions

macro_rules! calls {
    ($($(#[$meta:meta])* fn $name:ident($($p:ident: $t:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[allow(unused_unsafe, clippy::too_many_arguments)]
        pub(crate) unsafe fn $name($($p: $t),*) -> crate::code::Outcome {
            // SAFETY: the program's pointers are null, which is checked, or good for
            // what the documentation of this function says.
            unsafe { $body }
        }
    )*};
}

/// Functions that come in two forms, for either default stream.
macro_rules! stream_calls {
    ($(fn $name:ident $per_thread:ident [$form:ident] ($($p:ident: $t:ty),* $(,)?) $body:block)*) => {$(
        #[allow(unused_unsafe, clippy::too_many_arguments)]
        pub(crate) unsafe fn $name($($p: $t),*) -> crate::code::Outcome {
            let $form = acb_cuda_abi::StreamForm::Legacy;
            // SAFETY: the program's pointers are null, which is checked, or good for
            // what the documentation of this function says.
            unsafe { $body }
        }
        #[allow(unused_unsafe, clippy::too_many_arguments)]
        pub(crate) unsafe fn $per_thread($($p: $t),*) -> crate::code::Outcome {
            let $form = acb_cuda_abi::StreamForm::PerThread;
            // SAFETY: as above.
            unsafe { $body }
        }
    )*};
}

mod array;
mod capture;
mod conditional;
mod context;
mod copy;
mod device;
mod event;
mod external;
mod function;
mod generic;
mod graph;
mod handed;
mod init;
mod ipc;
mod launch;
mod library;
mod link;
mod memory;
mod mipmap;
mod module;
mod node;
mod pool;
mod pool_share;
mod replay;
mod set;
mod shape;
mod stream;
mod texture;
mod value;
mod vmm;

/// All of them, for the exports.
pub(crate) mod all {
    pub(crate) use super::array::*;
    pub(crate) use super::capture::*;
    pub(crate) use super::conditional::*;
    pub(crate) use super::context::*;
    pub(crate) use super::copy::*;
    pub(crate) use super::device::*;
    pub(crate) use super::event::*;
    pub(crate) use super::external::*;
    pub(crate) use super::function::*;
    pub(crate) use super::generic::*;
    pub(crate) use super::graph::*;
    pub(crate) use super::handed::*;
    pub(crate) use super::init::*;
    pub(crate) use super::ipc::*;
    pub(crate) use super::launch::*;
    pub(crate) use super::library::*;
    pub(crate) use super::link::*;
    pub(crate) use super::memory::*;
    pub(crate) use super::mipmap::*;
    pub(crate) use super::module::*;
    pub(crate) use super::node::*;
    pub(crate) use super::pool::*;
    pub(crate) use super::pool_share::*;
    pub(crate) use super::replay::*;
    pub(crate) use super::set::*;
    pub(crate) use super::stream::*;
    pub(crate) use super::texture::*;
    pub(crate) use super::value::*;
    pub(crate) use super::vmm::*;
}

pub(crate) use array::SPARSE;
pub(crate) use module::JitOptions;

use crate::code::{INVALID_VALUE, NOT_SUPPORTED, Outcome};

/// The answer of functions that are not there.
pub(crate) fn unsupported(_symbol: &str) -> Outcome {
    crate::driver::get()?;
    Err(NOT_SUPPORTED)
}

/// Writes a result where the program wants it.
///
/// # Safety
/// `to` is null or may be written.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so the caller vouches for it.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Writes a result that the program need not want.
///
/// # Safety
/// `to` is null or may be written.
unsafe fn put_wanted<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: not null, so the caller vouches for it.
        unsafe { to.write_unaligned(value) };
    }
}

/// A list of nodes that a program passes in.
///
/// # Safety
/// `list` is null or has `count` elements.
unsafe fn nodes_of(
    list: *const acb_cuda_abi::sys::CUgraphNode,
    count: usize,
) -> Outcome<Vec<crate::handles::Handle<crate::graph::Node>>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if list.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for the list.
    let all = (0..count).map(|at| unsafe { list.add(at).read_unaligned() } as u64);
    Ok(all.map(crate::handles::Handle::from_bits).collect())
}

/// A C string's text.
///
/// # Safety
/// `text` is null or a string that ends.
unsafe fn text<'a>(text: *const std::ffi::c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so the caller vouches for it.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_str().map_err(|_| INVALID_VALUE)
}
