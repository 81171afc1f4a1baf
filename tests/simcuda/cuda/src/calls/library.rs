//! Libraries, which load into every context that uses them, and their kernels.
#![allow(unsafe_code)] // C pointers

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::function::{function_attribute, lasting};
use super::module::{JitOptions, cuModuleGetGlobal_v2, read_image};
use super::{put, put_wanted, text};
use crate::code::{FILE_NOT_FOUND, INVALID_HANDLE, INVALID_VALUE, NOT_FOUND};
use crate::driver::{self};
use crate::handles::Handle;
use crate::objects::Library;

calls! {
    fn cuLibraryLoadData(
        library: *mut sys::CUlibrary,
        code: *const c_void,
        options: *mut c_uint,
        values: *mut *mut c_void,
        count: c_uint,
        _library_options: *mut c_uint,
        _library_values: *mut *mut c_void,
        _library_count: c_uint,
    ) {
        let driver = driver::get()?;
        let options = JitOptions::read(count, options, values);
        let image = read_image(code);
        options.tell(image.as_ref().map(drop).map_err(|&code| code));
        let image = Arc::new(image?);
        let (modules, kernels) = (HashMap::new(), HashMap::new());
        let handle = driver.lock().libraries.insert(Library { image, modules, kernels });
        put(library, handle.bits() as sys::CUlibrary)
    }

    fn cuLibraryLoadFromFile(
        library: *mut sys::CUlibrary,
        path: *const c_char,
        options: *mut c_uint,
        values: *mut *mut c_void,
        count: c_uint,
        library_options: *mut c_uint,
        library_values: *mut *mut c_void,
        library_count: c_uint,
    ) {
        driver::get()?;
        let mut image = std::fs::read(text(path)?).map_err(|_| FILE_NOT_FOUND)?;
        image.push(0);
        cuLibraryLoadData(
            library,
            image.as_ptr().cast(),
            options,
            values,
            count,
            library_options,
            library_values,
            library_count,
        )
    }

    fn cuLibraryUnload(library: sys::CUlibrary) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(library as u64);
        let library = tables.libraries.remove(handle).ok_or(INVALID_HANDLE)?;
        for kernel in library.kernels.into_values() {
            tables.kernels.remove(kernel);
        }
        for module in library.modules.into_values() {
            tables.unload(module);
        }
        Ok(())
    }

    fn cuLibraryGetKernel(
        kernel: *mut sys::CUkernel,
        library: sys::CUlibrary,
        name: *const c_char,
    ) {
        let driver = driver::get()?;
        let name = text(name)?;
        let handle = driver.lock().library_kernel(Handle::from_bits(library as u64), name)?;
        put(kernel, handle.bits() as sys::CUkernel)
    }

    fn cuLibraryGetKernelCount(count: *mut c_uint, library: sys::CUlibrary) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let library = tables.libraries.get(Handle::from_bits(library as u64));
        put(count, library.ok_or(INVALID_HANDLE)?.image.entries.len() as c_uint)
    }

    fn cuLibraryEnumerateKernels(
        kernels: *mut sys::CUkernel,
        count: c_uint,
        library: sys::CUlibrary,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(library as u64);
        let image = Arc::clone(&tables.libraries.get(handle).ok_or(INVALID_HANDLE)?.image);
        for (at, entry) in image.entries.iter().take(count as usize).enumerate() {
            let kernel = tables.library_kernel(handle, &entry.name)?;
            put(kernels.wrapping_add(at), kernel.bits() as sys::CUkernel)?;
        }
        Ok(())
    }

    fn cuLibraryGetModule(module: *mut sys::CUmodule, library: sys::CUlibrary) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        let handle = tables.library_module(Handle::from_bits(library as u64), context)?;
        put(module, handle.bits() as sys::CUmodule)
    }

    fn cuLibraryGetGlobal(
        pointer: *mut u64,
        bytes: *mut usize,
        library: sys::CUlibrary,
        name: *const c_char,
    ) {
        let mut module = std::ptr::null_mut();
        cuLibraryGetModule(&raw mut module, library)?;
        cuModuleGetGlobal_v2(pointer, bytes, module, name)
    }

    fn cuLibraryGetManaged(
        _pointer: *mut u64,
        _bytes: *mut usize,
        _library: sys::CUlibrary,
        _name: *const c_char,
    ) {
        driver::get()?;
        Err(NOT_FOUND)
    }

    fn cuKernelGetFunction(function: *mut sys::CUfunction, kernel: sys::CUkernel) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        let handle = tables.kernel_function(kernel as u64, context)?;
        put(function, handle.bits() as sys::CUfunction)
    }

    fn cuKernelGetLibrary(library: *mut sys::CUlibrary, kernel: sys::CUkernel) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let kernel = tables.kernels.get(Handle::from_bits(kernel as u64)).ok_or(INVALID_HANDLE)?;
        put(library, kernel.library.bits() as sys::CUlibrary)
    }

    fn cuKernelGetName(name: *const *mut c_char, kernel: sys::CUkernel) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let kernel = tables.kernels.get(Handle::from_bits(kernel as u64)).ok_or(INVALID_HANDLE)?;
        put(name.cast_mut(), lasting(&kernel.name).as_ptr().cast_mut())
    }

    fn cuKernelGetAttribute(
        value: *mut c_int,
        attribute: c_uint,
        kernel: sys::CUkernel,
        dev: c_int,
    ) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let tables = driver.lock();
        tables.kernels.get(Handle::from_bits(kernel as u64)).ok_or(INVALID_HANDLE)?;
        put(value, function_attribute(attribute, 0)?)
    }

    fn cuKernelSetAttribute(
        attribute: c_uint,
        _value: c_int,
        kernel: sys::CUkernel,
        dev: c_int,
    ) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let tables = driver.lock();
        tables.kernels.get(Handle::from_bits(kernel as u64)).ok_or(INVALID_HANDLE)?;
        function_attribute(attribute, 0).map(drop)
    }

    fn cuKernelSetCacheConfig(kernel: sys::CUkernel, _config: c_uint, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let tables = driver.lock();
        tables.kernels.get(Handle::from_bits(kernel as u64)).ok_or(INVALID_HANDLE).map(drop)
    }

    fn cuKernelGetParamInfo(
        kernel: sys::CUkernel,
        index: usize,
        offset: *mut usize,
        size: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let kernel = tables.kernels.get(Handle::from_bits(kernel as u64)).ok_or(INVALID_HANDLE)?;
        let library = tables.libraries.get(kernel.library).ok_or(INVALID_HANDLE)?;
        let entry = library.image.entries.iter().find(|entry| entry.name == kernel.name);
        let parameter = entry.and_then(|entry| entry.parameters.get(index)).ok_or(INVALID_VALUE)?;
        put(offset, parameter.offset)?;
        put_wanted(size, parameter.size);
        Ok(())
    }
}
