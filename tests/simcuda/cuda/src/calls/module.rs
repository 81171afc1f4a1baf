//! Modules: images of code, loaded into a context.
#![allow(unsafe_code)] // C pointers

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::{put, put_wanted, text};
use crate::code::{
    FILE_NOT_FOUND, INVALID_HANDLE, INVALID_IMAGE, INVALID_PTX, INVALID_VALUE, NO_BINARY_FOR_GPU,
    NOT_FOUND, Outcome,
};
use crate::driver::{self};
use crate::fatbin;
use crate::handles::Handle;
use crate::link::Container;
use crate::ptx::{self, Image};

calls! {
    fn cuModuleLoadData(module: *mut sys::CUmodule, image: *const c_void) {
        let driver = driver::get()?;
        let image = Arc::new(read_image(image)?);
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        tables = driver.await_quiet(tables, context);
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
        let options = JitOptions::read(count, options, values);
        let loaded = cuModuleLoadData(module, image);
        options.tell(loaded);
        loaded
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
    if head == ELF {
        // Machine code: nothing here could run it.
        return Err(NO_BINARY_FOR_GPU);
    }
    let mut image = image;
    if u32::from_le_bytes(head) == fatbin::WRAPPER {
        // SAFETY: a wrapper has two words, and a pointer to a container.
        image = unsafe { image.cast::<u64>().add(1).read_unaligned() } as *const c_void;
        // SAFETY: as above.
        if image.is_null() || unsafe { image.cast::<u32>().read_unaligned() } != fatbin::MARK {
            return Err(INVALID_IMAGE);
        }
    }
    if [fatbin::MARK, fatbin::WRAPPER].contains(&u32::from_le_bytes(head)) {
        // SAFETY: a container begins with a head, which says how long it is.
        let head = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), 16) };
        // SAFETY: as above.
        let container =
            unsafe { std::slice::from_raw_parts(image.cast::<u8>(), fatbin::length(head)?) };
        return ptx::parse(&fatbin::text(container)?);
    }
    if head == Container::MARK[..4] {
        // SAFETY: nothing else begins with this; a linker made it.
        let texts = unsafe { contained(image.cast()) }?;
        return Container::image(&texts);
    }
    // SAFETY: not one of the binary forms, so it is a text that ends with a zero.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    ptx::parse(text.to_str().map_err(|_| INVALID_IMAGE)?)
}

/// The texts of a container; it says how many there are, but not how long it is.
///
/// # Safety
/// `image` is a container.
unsafe fn contained<'a>(image: *const u8) -> Outcome<Vec<&'a str>> {
    let mark = Container::MARK.len();
    // SAFETY: as long as a container at least.
    let head = unsafe { std::slice::from_raw_parts(image, mark + 4) };
    if head[..mark] != Container::MARK {
        return Err(INVALID_IMAGE);
    }
    let count = u32::from_le_bytes([head[mark], head[mark + 1], head[mark + 2], head[mark + 3]]);
    let mut at = image.wrapping_add(mark + 4);
    let mut texts = Vec::new();
    for _ in 0..count {
        // SAFETY: that many texts follow, each with a zero at its end.
        let text = unsafe { CStr::from_ptr(at.cast()) };
        texts.push(text.to_str().map_err(|_| INVALID_IMAGE)?);
        at = at.wrapping_add(text.to_bytes_with_nul().len());
    }
    Ok(texts)
}

/// Where a program wants the compiler's and the linker's words.
pub(crate) struct JitOptions {
    info: Log,
    error: Log,
}

/// A buffer for words, and where their number goes.
#[derive(Default)]
struct Log {
    buffer: usize,
    size: usize,
    /// The option's value, which becomes the number of bytes written.
    number: usize,
}

impl JitOptions {
    /// # Safety
    /// The arrays are null or have `count` elements, and stay as long as this does.
    pub(super) unsafe fn read(
        count: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
    ) -> JitOptions {
        let mut read = JitOptions { info: Log::default(), error: Log::default() };
        if options.is_null() || values.is_null() {
            return read;
        }
        for at in 0..count as usize {
            // SAFETY: inside the arrays, as the caller vouches.
            let (option, value) = unsafe { (options.add(at).read(), values.add(at).read()) };
            let place = values.wrapping_add(at) as usize;
            match option {
                3 => read.info.buffer = value as usize,
                4 => (read.info.size, read.info.number) = (value as u32 as usize, place),
                5 => read.error.buffer = value as usize,
                6 => (read.error.size, read.error.number) = (value as u32 as usize, place),
                _ => {}
            }
        }
        read
    }

    /// Says how it went.
    pub(super) fn tell(&self, outcome: Outcome) {
        let error = match outcome {
            Ok(()) => "",
            Err(code) if code == INVALID_PTX => "ptxas fatal   : the PTX cannot be read",
            Err(code) if code == NO_BINARY_FOR_GPU => {
                "fatal   : the software GPU takes PTX, no machine code"
            }
            Err(_) => "fatal   : the image cannot be read",
        };
        self.info.write("");
        self.error.write(error);
    }
}

impl Log {
    fn write(&self, text: &str) {
        let mut written = 0;
        if self.buffer != 0 && self.size > 0 {
            written = text.len().min(self.size - 1);
            let to = self.buffer as *mut u8;
            // SAFETY: the program gave a buffer of this size, and keeps it.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr(), to, written);
                to.add(written).write(0);
            }
        }
        if self.number != 0 {
            // SAFETY: a place in the program's array of values, which it keeps.
            unsafe { (self.number as *mut *mut c_void).write(written as *mut c_void) };
        }
    }
}
