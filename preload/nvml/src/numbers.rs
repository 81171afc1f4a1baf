//! The numbers of GPUs: those of this client have the ordinals by which `CUDA_VISIBLE_DEVICES` knows them.
//!
//! Programs take an entry of that list for NVML's number of the GPU. NVML counts what is in the node, by PCI bus; so in a client its own
//! GPUs change places with those that have their numbers. Nothing is hidden, and before cuInit nothing is changed.
//!
//! Owns: the permutation, once the interposer knows the client's GPUs. Does not own: MIG slices, which NVML does not number.
#![allow(unsafe_code)] // FFI: calls through addresses that the dynamic linker gave.

use crate::exports::Index;
use crate::library::target;
use crate::memory::{SUCCESS, UUID_SIZE, uuid};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// NVML's own number for each that the program knows.
static NUMBERS: OnceLock<Vec<c_uint>> = OnceLock::new();

/// # Safety
/// `device` is a place or NULL.
pub(crate) unsafe fn by_index(function: Index, index: c_uint, device: *mut *mut c_void) -> c_int {
    let own = numbers().and_then(|numbers| numbers.get(index as usize).copied());
    // SAFETY: the program's own argument.
    unsafe { real_by_index(function, own.unwrap_or(index), device) }
}

/// # Safety
/// `device` is NVML's or NULL, `to` a place or NULL.
pub(crate) unsafe fn index_of(device: *mut c_void, to: *mut c_uint) -> c_int {
    type Call = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;
    // SAFETY: NVML's function of this name has this signature, or ignores its arguments.
    let call: Call = unsafe { std::mem::transmute(target(Index::nvmlDeviceGetIndex as usize)) };
    // SAFETY: the program's own arguments.
    let code = unsafe { call(device, to) };
    if code == SUCCESS && !to.is_null() {
        // SAFETY: NVML has succeeded, so it has written there.
        let real = unsafe { to.read() };
        let own = numbers().and_then(|numbers| numbers.iter().position(|known| *known == real));
        if let Some(own) = own {
            // SAFETY: as above.
            unsafe { to.write(own as c_uint) };
        }
    }
    code
}

/// # Safety
/// `device` is a place or NULL.
unsafe fn real_by_index(function: Index, index: c_uint, device: *mut *mut c_void) -> c_int {
    type Call = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
    // SAFETY: NVML's functions of these names have this signature, or ignore their arguments.
    let call: Call = unsafe { std::mem::transmute(target(function as usize)) };
    // SAFETY: the caller's promise.
    unsafe { call(index, device) }
}

fn numbers() -> Option<&'static [c_uint]> {
    if let Some(known) = NUMBERS.get() {
        return Some(known);
    }
    let own = own()?;
    let numbers = permuted(&real()?, &own);
    Some(NUMBERS.get_or_init(|| numbers))
}

/// Exchanges places until the program's own GPUs are where it looks for them.
fn permuted(real: &[Vec<u8>], own: &[(usize, Vec<u8>)]) -> Vec<c_uint> {
    let mut numbers: Vec<c_uint> = (0..).take(real.len()).collect();
    for (ordinal, uuid) in own {
        let is_it = |number: &c_uint| real[*number as usize] == *uuid;
        if let Some(at) = numbers.iter().position(is_it)
            && *ordinal < numbers.len()
        {
            numbers.swap(at, *ordinal);
        }
    }
    numbers
}

/// The client's GPUs by their ordinals, from the interposer in this process. `None`: it is no client yet.
fn own() -> Option<Vec<(usize, Vec<u8>)>> {
    type Ask = unsafe extern "C" fn(c_uint, *mut c_char, usize) -> c_int;
    // SAFETY: a search in what is loaded, by a name that ends with a NUL.
    let ask = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"acb_ordinal_v1".as_ptr()) };
    if ask.is_null() {
        return None;
    }
    // SAFETY: the interposer declares it so; its name counts its versions.
    let ask: Ask = unsafe { std::mem::transmute(ask) };
    let known = (0..MOST).filter_map(|ordinal| {
        let mut uuid = [0_u8; UUID_SIZE];
        // SAFETY: a buffer of that length.
        let answered = unsafe { ask(ordinal, uuid.as_mut_ptr().cast(), uuid.len()) } == 0;
        let text = answered.then(|| CStr::from_bytes_until_nul(&uuid).ok()).flatten()?;
        Some((ordinal as usize, text.to_bytes().to_vec()))
    });
    let known: Vec<_> = known.collect();
    (!known.is_empty()).then_some(known)
}

/// More GPUs than any node has.
const MOST: c_uint = 64;

/// What NVML numbers, in its order. `None`: it is not initialised.
fn real() -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for index in 0..MOST {
        let mut device = std::ptr::null_mut();
        // SAFETY: a place on this stack.
        let code =
            unsafe { real_by_index(Index::nvmlDeviceGetHandleByIndex_v2, index, &raw mut device) };
        if code != SUCCESS {
            break;
        }
        let uuid = uuid(device)?;
        all.push(CStr::from_bytes_until_nul(&uuid).ok()?.to_bytes().to_vec());
    }
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_gpus_change_places_with_those_that_have_their_numbers() {
        let real: Vec<Vec<u8>> = (b'a'..b'e').map(|name| vec![name]).collect();
        let own = |list: &[(usize, u8)]| {
            let list: Vec<_> = list.iter().map(|(at, name)| (*at, vec![*name])).collect();
            permuted(&real, &list)
        };
        assert_eq!(own(&[(0, b'a')]), [0, 1, 2, 3]);
        assert_eq!(own(&[(0, b'c')]), [2, 1, 0, 3]);
        assert_eq!(own(&[(0, b'b'), (1, b'a')]), [1, 0, 2, 3]);
        assert_eq!(own(&[(0, b'b'), (1, b'c')]), [1, 2, 0, 3]);
        assert_eq!(own(&[(0, b'x'), (1, b'd')]), [0, 3, 2, 1], "a slice is not numbered");
    }
}
