//! Modules: images of code, loaded into a context.
#![allow(unsafe_code)] // C pointers

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::{put, put_wanted, text};
use crate::code::{
    FILE_NOT_FOUND, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, NOT_FOUND, Outcome,
};
use crate::driver::{self};
use crate::handles::Handle;
use crate::ptx::{self, Image};

calls! {
    fn cuModuleLoadData(module: *mut sys::CUmodule, image: *const c_void) {
        let driver = driver::get()?;
        let image = Arc::new(read_image(image)?);
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        let handle = tables.load(context, image, false)?;
        put(module, handle.bits() as sys::CUmodule)
    }

    fn cuModuleLoadDataEx(
        module: *mut sys::CUmodule,
        image: *const c_void,
        count: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
    ) {
        report_no_log(count, options, values);
        cuModuleLoadData(module, image)
    }

    fn cuModuleLoadFatBinary(module: *mut sys::CUmodule, image: *const c_void) {
        cuModuleLoadData(module, image)
    }

    fn cuModuleLoad(module: *mut sys::CUmodule, path: *const c_char) {
        driver::get()?;
        let mut image = std::fs::read(text(path)?).map_err(|_| FILE_NOT_FOUND)?;
        image.push(0);
        cuModuleLoadData(module, image.as_ptr().cast())
    }

    fn cuModuleUnload(module: sys::CUmodule) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(module as u64);
        let found = tables.modules.get(handle).ok_or(INVALID_HANDLE)?;
        let (context, of_library) = (found.context, found.of_library);
        if of_library {
            return Err(INVALID_HANDLE);
        }
        tables.context(context)?;
        tables.unload(handle);
        Ok(())
    }

    fn cuModuleGetFunction(
        function: *mut sys::CUfunction,
        module: sys::CUmodule,
        name: *const c_char,
    ) {
        let driver = driver::get()?;
        let name = text(name)?;
        let mut tables = driver.lock();
        let handle = tables.function(Handle::from_bits(module as u64), name)?;
        put(function, handle.bits() as sys::CUfunction)
    }

    fn cuModuleGetFunctionCount(count: *mut c_uint, module: sys::CUmodule) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let module = tables.modules.get(Handle::from_bits(module as u64)).ok_or(INVALID_HANDLE)?;
        put(count, module.image.entries.len() as c_uint)
    }

    fn cuModuleEnumerateFunctions(
        functions: *mut sys::CUfunction,
        count: c_uint,
        module: sys::CUmodule,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(module as u64);
        let image = Arc::clone(&tables.modules.get(handle).ok_or(INVALID_HANDLE)?.image);
        for (at, entry) in image.entries.iter().take(count as usize).enumerate() {
            let function = tables.function(handle, &entry.name)?;
            put(functions.wrapping_add(at), function.bits() as sys::CUfunction)?;
        }
        Ok(())
    }

    fn cuModuleGetGlobal_v2(
        pointer: *mut u64,
        bytes: *mut usize,
        module: sys::CUmodule,
        name: *const c_char,
    ) {
        let driver = driver::get()?;
        let name = text(name)?;
        let tables = driver.lock();
        let module = tables.modules.get(Handle::from_bits(module as u64)).ok_or(INVALID_HANDLE)?;
        let &(start, size) = module.globals.get(name).ok_or(NOT_FOUND)?;
        put_wanted(pointer, start);
        put_wanted(bytes, size);
        Ok(())
    }

    fn cuModuleGetLoadingMode(mode: *mut c_uint) {
        driver::get()?;
        put(mode, 1)
    }
}

/// # Safety
/// `image` is null or an image of a kind that the driver takes.
pub(super) unsafe fn read_image(image: *const c_void) -> Outcome<Image> {
    const ELF: [u8; 4] = *b"\x7fELF";
    const FAT: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
    const FAT_WRAPPED: [u8; 4] = [0xb1, 0x43, 0x62, 0x46];
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: text ends with a zero; anything else is longer than four bytes.
    let mut head = [0; 4];
    for (at, byte) in head.iter_mut().enumerate() {
        // SAFETY: as above: reading stops at the zero that ends a text.
        *byte = unsafe { image.cast::<u8>().add(at).read() };
        if *byte == 0 {
            break;
        }
    }
    if matches!(head, ELF | FAT | FAT_WRAPPED) {
        // Machine code: nothing here could run it.
        return Err(crate::code::NO_BINARY_FOR_GPU);
    }
    // SAFETY: not one of the binary forms, so it is a text that ends with a zero.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    ptx::parse(text.to_str().map_err(|_| INVALID_IMAGE)?)
}

/// Says that the compiler's logs are empty, where the program asked for them.
///
/// # Safety
/// The arrays are null or have `count` elements.
pub(super) unsafe fn report_no_log(count: c_uint, options: *mut c_uint, values: *mut *mut c_void) {
    const INFO_SIZE: c_uint = 4;
    const ERROR_SIZE: c_uint = 6;
    if options.is_null() || values.is_null() {
        return;
    }
    for at in 0..count as usize {
        // SAFETY: inside the arrays, as the caller vouches.
        unsafe {
            if matches!(options.add(at).read(), INFO_SIZE | ERROR_SIZE) {
                values.add(at).write(std::ptr::null_mut());
            }
        }
    }
}
