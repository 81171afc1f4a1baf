//! The sample's work through cudarc's safe API, which asks for `libcuda.so` before `libcuda.so.1`.
//!
//! Owns: a client that nobody here wrote the driver access of. Does not own: the kernels.
#![allow(unsafe_code)] // cudarc's launch is unsafe: it cannot check a kernel's arguments.

use std::process::ExitCode;

use acb_workloads::driver::Library;
use acb_workloads::loaded::Loaded;
use acb_workloads::{kernels, reference};
use anyhow::ensure;
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const WORDS: usize = 1000;

fn main() -> ExitCode {
    let result = match run() {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let loaded = Loaded::new("cudarc", answered_by(), result);
    loaded.print();
    loaded.exit_code()
}

fn run() -> anyhow::Result<()> {
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(kernels::PTX))?;
    let fill = module.load_function("acb_fill")?;
    let step = module.load_function("acb_step")?;
    let sum = module.load_function("acb_sum")?;

    let mut memory = stream.alloc_zeros::<u64>(WORDS)?;
    let mut total = stream.alloc_zeros::<u64>(1)?;
    let (words, seed, salt, length) = (WORDS as u64, 11u64, 5u64, 1_000_000u64);
    let shape = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of the kernel, and the memory has that many words.
    unsafe { stream.launch_builder(&fill).arg(&mut memory).arg(&words).arg(&seed).launch(shape) }?;
    // SAFETY: as above.
    unsafe {
        stream
            .launch_builder(&step)
            .arg(&mut memory)
            .arg(&words)
            .arg(&salt)
            .arg(&length)
            .launch(shape)
    }?;
    // SAFETY: as above; `total` has one word.
    unsafe { stream.launch_builder(&sum).arg(&memory).arg(&words).arg(&mut total).launch(shape) }?;

    let mut right = vec![0; WORDS];
    reference::fill(&mut right, seed);
    reference::step(&mut right, salt);
    ensure!(stream.clone_dtoh(&memory)? == right, "wrong data after fill and step");
    ensure!(stream.clone_dtoh(&total)? == [reference::sum(&right)], "wrong sum");
    Ok(())
}

/// The library that cudarc's first name leads to: cudarc keeps its handle to itself, but asking the
/// loader again gives the same one.
fn answered_by() -> String {
    let library = Library::open("libcuda.so").or_else(|_| Library::open("libcuda.so.1"));
    library.ok().and_then(|library| library.path()).unwrap_or_default()
}
