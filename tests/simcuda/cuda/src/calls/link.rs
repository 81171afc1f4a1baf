//! The linker: texts go in, an image comes out that the loading functions take.
//! The image is a container of this library's own that holds the texts.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_char, c_uint, c_void};

use acb_cuda_abi::sys;

use super::module::JitOptions;
use super::{put, put_wanted, text};
use crate::code::{
    FILE_NOT_FOUND, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, NO_BINARY_FOR_GPU, Outcome,
};
use crate::driver;
use crate::handles::Handle;
use crate::link::{Container, Link};

/// `CUjitInputType`
const CUBIN: c_uint = 0;
const PTX: c_uint = 1;
const LAST_KIND: c_uint = 5;

calls! {
    fn cuLinkCreate(
        count: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
        state: *mut sys::CUlinkState,
    ) {
        cuLinkCreate_v2(count, options, values, state)
    }

    fn cuLinkCreate_v2(
        count: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
        state: *mut sys::CUlinkState,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        driver.current(&tables)?;
        if state.is_null() {
            return Err(INVALID_VALUE);
        }
        // The program keeps the arrays for as long as it links.
        let options = JitOptions::read(count, options, values);
        options.tell(Ok(()));
        let handle = tables.links.insert(Link { options, texts: Vec::new(), linked: None });
        put(state, handle.bits() as sys::CUlinkState)
    }

    fn cuLinkAddData(
        state: sys::CUlinkState,
        kind: c_uint,
        data: *mut c_void,
        size: usize,
        name: *const c_char,
        count: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
    ) {
        cuLinkAddData_v2(state, kind, data, size, name, count, options, values)
    }

    fn cuLinkAddData_v2(
        state: sys::CUlinkState,
        kind: c_uint,
        data: *mut c_void,
        size: usize,
        _name: *const c_char,
        _count: c_uint,
        _options: *mut c_uint,
        _values: *mut *mut c_void,
    ) {
        if data.is_null() || size == 0 {
            driver::get()?;
            return Err(INVALID_VALUE);
        }
        add(state, kind, std::slice::from_raw_parts(data.cast::<u8>(), size))
    }

    fn cuLinkAddFile(
        state: sys::CUlinkState,
        kind: c_uint,
        path: *const c_char,
        count: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
    ) {
        cuLinkAddFile_v2(state, kind, path, count, options, values)
    }

    fn cuLinkAddFile_v2(
        state: sys::CUlinkState,
        kind: c_uint,
        path: *const c_char,
        _count: c_uint,
        _options: *mut c_uint,
        _values: *mut *mut c_void,
    ) {
        driver::get()?;
        let data = std::fs::read(text(path)?).map_err(|_| FILE_NOT_FOUND)?;
        add(state, kind, &data)
    }

    fn cuLinkComplete(state: sys::CUlinkState, image: *mut *mut c_void, size: *mut usize) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let link = tables.links.get_mut(Handle::from_bits(state as u64)).ok_or(INVALID_HANDLE)?;
        let linked = link.complete();
        link.options.tell(linked.as_ref().map(drop).map_err(|&code| code));
        // It stays until the linker goes.
        let linked = link.linked.insert(linked?);
        put_wanted(size, linked.len());
        put(image, linked.as_ptr().cast_mut().cast())
    }

    fn cuLinkDestroy(state: sys::CUlinkState) {
        let driver = driver::get()?;
        let removed = driver.lock().links.remove(Handle::from_bits(state as u64));
        removed.ok_or(INVALID_HANDLE).map(drop)
    }
}

fn add(state: sys::CUlinkState, kind: c_uint, data: &[u8]) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let link = tables.links.get_mut(Handle::from_bits(state as u64)).ok_or(INVALID_HANDLE)?;
    if kind > LAST_KIND {
        return Err(INVALID_VALUE);
    }
    let added = match kind {
        PTX => link.add_text(data),
        CUBIN => match Container::texts(data) {
            Some(texts) => texts.iter().try_for_each(|text| link.add_text(text)),
            None if data.starts_with(b"\x7fELF") => Err(NO_BINARY_FOR_GPU),
            None => Err(INVALID_IMAGE),
        },
        // Machine code: nothing here could run it.
        _ => Err(NO_BINARY_FOR_GPU),
    };
    link.options.tell(added);
    added
}
