//! Modules, libraries, kernels and their attributes.
#![allow(unsafe_code)] // C pointers

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;

use super::{put, put_wanted, text};
use crate::code::{
    FILE_NOT_FOUND, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, NOT_FOUND, Outcome,
};
use crate::driver::{self, Driver};
use crate::handles::Handle;
use crate::kernels::Kernel;
use crate::objects::{Context, Function, Library, LibraryKernel, Module, Tables};
use crate::physical::Physical;
use crate::ptx::{self, Image};
use crate::space::RegionKind;

calls! {
    fn cuModuleLoadData(module: *mut sys::CUmodule, image: *const c_void) {
        let driver = driver::get()?;
        let image = Arc::new(read_image(image)?);
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        let handle = tables.load(driver, context, image, false)?;
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
        report_no_log(count, options, values);
        let image = Arc::new(read_image(code)?);
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
        let handle = tables.library_module(driver, Handle::from_bits(library as u64), context)?;
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
        let handle = tables.kernel_function(driver, kernel as u64, context)?;
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

    fn cuFuncGetParamInfo(
        function: sys::CUfunction,
        index: usize,
        offset: *mut usize,
        size: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let function = Handle::from_bits(function as u64);
        let function = tables.functions.get(function).ok_or(INVALID_HANDLE)?;
        let parameter = function.parameters.get(index).ok_or(INVALID_VALUE)?;
        put(offset, parameter.offset)?;
        put_wanted(size, parameter.size);
        Ok(())
    }

    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: sys::CUfunction) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let dynamic = tables.launched(driver, function as u64)?;
        let dynamic = tables.functions.get(dynamic).ok_or(INVALID_HANDLE)?.dynamic_shared;
        put(value, function_attribute(attribute, dynamic)?)
    }

    fn cuFuncSetAttribute(function: sys::CUfunction, attribute: c_uint, value: c_int) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = tables.launched(driver, function as u64)?;
        let function = tables.functions.get_mut(handle).ok_or(INVALID_HANDLE)?;
        match attribute {
            8 => {
                let bytes = u32::try_from(value).map_err(|_| INVALID_VALUE)?;
                if bytes > LARGEST_SHARED {
                    return Err(INVALID_VALUE);
                }
                function.dynamic_shared = bytes;
                Ok(())
            }
            9..=15 => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuFuncSetCacheConfig(function: sys::CUfunction, _config: c_uint) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64).map(drop)
    }

    fn cuFuncSetSharedMemConfig(function: sys::CUfunction, _config: c_uint) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64).map(drop)
    }

    fn cuFuncGetModule(module: *mut sys::CUmodule, function: sys::CUfunction) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let function = tables.functions.get(Handle::from_bits(function as u64));
        put(module, function.ok_or(INVALID_HANDLE)?.module.bits() as sys::CUmodule)
    }

    fn cuFuncGetName(name: *const *mut c_char, function: sys::CUfunction) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let function = tables.functions.get(Handle::from_bits(function as u64));
        let text = lasting(&function.ok_or(INVALID_HANDLE)?.name);
        put(name.cast_mut(), text.as_ptr().cast_mut())
    }

    fn cuFuncIsLoaded(state: *mut c_uint, function: sys::CUfunction) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        put(state, 1)
    }

    fn cuFuncLoad(function: sys::CUfunction) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64).map(drop)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: sys::CUfunction,
        threads: c_int,
        dynamic: usize,
    ) {
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic, 0)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int,
        function: sys::CUfunction,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        if threads <= 0 {
            return Err(INVALID_VALUE);
        }
        let by_threads = if threads > 1024 { 0 } else { (2048 / threads).min(32) };
        let by_memory = (228_usize << 10).checked_div(dynamic).unwrap_or(32);
        put(blocks, by_threads.min(by_memory as c_int))
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int,
        block: *mut c_int,
        function: sys::CUfunction,
        _dynamic_of: *mut c_void,
        _dynamic: usize,
        limit: c_int,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        let threads = if limit > 0 { limit.min(1024) } else { 1024 };
        put(grid, 132 * (2048 / threads.max(64)))?;
        put(block, threads)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int,
        block: *mut c_int,
        function: sys::CUfunction,
        dynamic_of: *mut c_void,
        dynamic: usize,
        limit: c_int,
        _flags: c_uint,
    ) {
        cuOccupancyMaxPotentialBlockSize(grid, block, function, dynamic_of, dynamic, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize,
        function: sys::CUfunction,
        blocks: c_int,
        threads: c_int,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        if blocks <= 0 || threads <= 0 {
            return Err(INVALID_VALUE);
        }
        put(bytes, (228 << 10) / blocks as usize - (1 << 10))
    }

    fn cuOccupancyMaxActiveClusters(
        clusters: *mut c_int,
        function: sys::CUfunction,
        _config: *const sys::CUlaunchConfig,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        put(clusters, 132)
    }

    fn cuOccupancyMaxPotentialClusterSize(
        size: *mut c_int,
        function: sys::CUfunction,
        _config: *const sys::CUlaunchConfig,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        put(size, 8)
    }
}

/// The most shared memory that a block may have.
pub(crate) const LARGEST_SHARED: u32 = 227 << 10;

fn function_attribute(attribute: c_uint, dynamic: u32) -> Outcome<c_int> {
    Ok(match attribute {
        0 => 1024,
        // static shared, constant and local memory
        1..=3 => 0,
        4 => 32,
        5 | 6 => 90,
        7 => 0,
        8 => dynamic.max(48 << 10) as c_int,
        9 => -1,
        10..=15 => 0,
        _ => return Err(INVALID_VALUE),
    })
}

/// A C string that is never freed; one per name.
fn lasting(name: &str) -> &'static CStr {
    static NAMES: std::sync::Mutex<Vec<&'static CStr>> = std::sync::Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| known.to_bytes() == name.as_bytes()) {
        return known;
    }
    let owned = std::ffi::CString::new(name).unwrap_or_default();
    let leaked: &'static CStr = Box::leak(owned.into_boxed_c_str());
    names.push(leaked);
    leaked
}

/// # Safety
/// `image` is null or an image of a kind that the driver takes.
unsafe fn read_image(image: *const c_void) -> Outcome<Image> {
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
unsafe fn report_no_log(count: c_uint, options: *mut c_uint, values: *mut *mut c_void) {
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

impl Tables {
    /// Loads an image into a context.
    pub(crate) fn load(
        &mut self,
        driver: &Driver,
        context: Handle<Context>,
        image: Arc<Image>,
        of_library: bool,
    ) -> Outcome<Handle<Module>> {
        let gpu = self.context(context)?.gpu;
        let _ = driver;
        let mut globals = HashMap::new();
        for global in &image.globals {
            let length = global.size.next_multiple_of(crate::space::ALIGNMENT);
            let memory = Physical::new(gpu, length)?;
            let start = self.space.add(length, 512, RegionKind::Global)?;
            self.space.map(start, length, memory, 0, 1 << gpu)?;
            globals.insert(global.name.clone(), (start, global.size));
        }
        let functions = HashMap::new();
        Ok(self.modules.insert(Module { context, image, functions, globals, of_library }))
    }

    /// Takes a module away.
    pub(crate) fn unload(&mut self, module: Handle<Module>) {
        let Some(module) = self.modules.remove(module) else { return };
        for function in module.functions.into_values() {
            self.functions.remove(function);
        }
        for (start, _) in module.globals.into_values() {
            self.space.remove(start);
        }
    }

    fn function(&mut self, handle: Handle<Module>, name: &str) -> Outcome<Handle<Function>> {
        let module = self.modules.get(handle).ok_or(INVALID_HANDLE)?;
        if let Some(&function) = module.functions.get(name) {
            return Ok(function);
        }
        let entry = module.image.entries.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or(NOT_FOUND)?;
        let function = self.functions.insert(Function {
            name: Arc::from(name),
            parameters: Arc::from(entry.parameters.as_slice()),
            kernel: Kernel::of(name, &entry.parameters),
            module: handle,
            context: module.context,
            dynamic_shared: 0,
        });
        if let Some(module) = self.modules.get_mut(handle) {
            module.functions.insert(name.to_owned(), function);
        }
        Ok(function)
    }

    fn library_kernel(
        &mut self,
        library: Handle<Library>,
        name: &str,
    ) -> Outcome<Handle<LibraryKernel>> {
        let found = self.libraries.get(library).ok_or(INVALID_HANDLE)?;
        if let Some(&kernel) = found.kernels.get(name) {
            return Ok(kernel);
        }
        if !found.image.entries.iter().any(|entry| entry.name == name) {
            return Err(NOT_FOUND);
        }
        let kernel = self.kernels.insert(LibraryKernel { library, name: name.to_owned() });
        if let Some(library) = self.libraries.get_mut(library) {
            library.kernels.insert(name.to_owned(), kernel);
        }
        Ok(kernel)
    }

    fn library_module(
        &mut self,
        driver: &Driver,
        library: Handle<Library>,
        context: Handle<Context>,
    ) -> Outcome<Handle<Module>> {
        let found = self.libraries.get(library).ok_or(INVALID_HANDLE)?;
        if let Some(&module) = found.modules.get(&context)
            && self.modules.contains(module)
        {
            return Ok(module);
        }
        let image = Arc::clone(&found.image);
        let module = self.load(driver, context, image, true)?;
        if let Some(library) = self.libraries.get_mut(library) {
            library.modules.insert(context, module);
        }
        Ok(module)
    }

    fn kernel_function(
        &mut self,
        driver: &Driver,
        bits: u64,
        context: Handle<Context>,
    ) -> Outcome<Handle<Function>> {
        let kernel = self.kernels.get(Handle::from_bits(bits)).ok_or(INVALID_HANDLE)?;
        let (library, name) = (kernel.library, kernel.name.clone());
        let module = self.library_module(driver, library, context)?;
        self.function(module, &name)
    }

    /// The function that a launch means: a function, or a library's kernel as the
    /// current context has it.
    pub(crate) fn launched(&mut self, driver: &Driver, bits: u64) -> Outcome<Handle<Function>> {
        let function = Handle::from_bits(bits);
        if self.functions.contains(function) {
            return Ok(function);
        }
        let context = driver.current(self)?;
        self.kernel_function(driver, bits, context)
    }
}
