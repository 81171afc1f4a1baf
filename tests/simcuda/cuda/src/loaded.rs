//! What is loaded: images become modules of a context, and names become functions.

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::{INVALID_HANDLE, NOT_FOUND, Outcome};
use crate::driver::Driver;
use crate::handles::Handle;
use crate::kernels::Kernel;
use crate::objects::{Context, Function, Library, LibraryKernel, Module, Tables};
use crate::physical::Physical;
use crate::ptx::Image;
use crate::space::RegionKind;

impl Tables {
    /// Loads an image into a context.
    pub(crate) fn load(
        &mut self,
        context: Handle<Context>,
        image: Arc<Image>,
        of_library: bool,
    ) -> Outcome<Handle<Module>> {
        let gpu = self.context(context)?.gpu;
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

    pub(crate) fn function(
        &mut self,
        handle: Handle<Module>,
        name: &str,
    ) -> Outcome<Handle<Function>> {
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
            code: None,
        });
        if let Some(module) = self.modules.get_mut(handle) {
            module.functions.insert(name.to_owned(), function);
        }
        Ok(function)
    }

    pub(crate) fn library_kernel(
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

    pub(crate) fn library_module(
        &mut self,
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
        let module = self.load(context, image, true)?;
        if let Some(library) = self.libraries.get_mut(library) {
            library.modules.insert(context, module);
        }
        Ok(module)
    }

    pub(crate) fn kernel_function(
        &mut self,
        bits: u64,
        context: Handle<Context>,
    ) -> Outcome<Handle<Function>> {
        let kernel = self.kernels.get(Handle::from_bits(bits)).ok_or(INVALID_HANDLE)?;
        let (library, name) = (kernel.library, kernel.name.clone());
        let module = self.library_module(library, context)?;
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
        self.kernel_function(bits, context)
    }
}
