//! Launching kernels.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::{CuResult, sys};
use simcuda_device::fault::FaultKind;
use simcuda_device::layout::EngineKind;

use super::function::LARGEST_SHARED;
use crate::code::{INVALID_HANDLE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES, Outcome};
use crate::driver::{self, Driver};
use crate::handles::Handle;
use crate::kernels::{Asked, KernelCall, LaunchFault};
use crate::objects::{Function, Tables};
use crate::ptx::Parameter;
use crate::timeline::Submission;
use crate::unasked::Unasked;
use crate::work::Work;

stream_calls! {
    fn cuLaunchKernel cuLaunchKernel_ptsz [form] (
        function: sys::CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: sys::CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        let driver = driver::get()?;
        let shape = [grid_x, grid_y, grid_z, block_x, block_y, block_z];
        launch(driver, form, function as u64, shape, shared, stream as u64, parameters, extra)
    }

    fn cuLaunchKernelEx cuLaunchKernelEx_ptsz [form] (
        config: *const sys::CUlaunchConfig,
        function: sys::CUfunction,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        let driver = driver::get()?;
        if config.is_null() {
            return Err(INVALID_VALUE);
        }
        // Field by field: what the attributes behind it hold may be newer than the bindings.
        let shape = [
            (*config).gridDimX,
            (*config).gridDimY,
            (*config).gridDimZ,
            (*config).blockDimX,
            (*config).blockDimY,
            (*config).blockDimZ,
        ];
        let (shared, stream) = ((*config).sharedMemBytes, (*config).hStream);
        launch(driver, form, function as u64, shape, shared, stream as u64, parameters, extra)
    }

    fn cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz [form] (
        function: sys::CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: sys::CUstream,
        parameters: *mut *mut c_void,
    ) {
        let driver = driver::get()?;
        let shape = [grid_x, grid_y, grid_z, block_x, block_y, block_z];
        let extra = std::ptr::null_mut();
        launch(driver, form, function as u64, shape, shared, stream as u64, parameters, extra)
    }
}

/// A launch as a program asks for it.
pub(super) struct Launch {
    /// A function, or a library's kernel.
    pub(super) function: u64,
    /// Blocks and threads, three of each.
    pub(super) shape: [c_uint; 6],
    pub(super) shared: c_uint,
    pub(super) list: *mut *mut c_void,
    pub(super) extra: *mut *mut c_void,
}

/// # Safety
/// The two lists are null or what the documentation of `cuLaunchKernel` says.
#[allow(clippy::too_many_arguments)]
unsafe fn launch(
    driver: &'static Driver,
    form: acb_cuda_abi::StreamForm,
    function: u64,
    shape: [c_uint; 6],
    shared: c_uint,
    stream: u64,
    list: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome {
    let mut tables = driver.lock();
    let handle = tables.launched(driver, function)?;
    let stream = driver.stream(&mut tables, stream, form)?;
    let context = tables.functions.get(handle).ok_or(INVALID_HANDLE)?.context;
    let (own, captures) = tables
        .streams
        .get(stream)
        .map(|stream| (stream.context, stream.part.is_some()))
        .ok_or(INVALID_HANDLE)?;
    if own != context {
        return Err(INVALID_HANDLE);
    }
    let keep = if captures { Keep::Arguments } else { Keep::Nothing };
    let asked = Launch { function, shape, shared, list, extra };
    // SAFETY: the caller vouches for both lists.
    let mut submission = unsafe { prepare(driver, &tables, handle, &asked, keep) }?;
    if !captures && let Work::Kernel(call) = &mut submission.work {
        if let Some(rule) = driver.faults.strike(FaultKind::LaunchRefused, call.as_call()) {
            return Err(rule.error.map_or(LAUNCH_OUT_OF_RESOURCES, CuResult));
        }
        call.meet_faults(&driver.faults);
        submission.length = call.length(&driver.config.gpus[submission.gpu]);
    }
    if !captures {
        if tables.functions.get(handle).is_some_and(|function| function.code.is_none()) {
            tables = driver.await_quiet(tables, context);
        }
        load(driver, &mut tables, handle, submission.gpu)?;
    }
    driver.submit(tables, stream, submission, &[]).map(drop)
}

/// The code of a function comes to the GPU when it is first launched.
fn load(driver: &Driver, tables: &mut Tables, handle: Handle<Function>, gpu: usize) -> Outcome {
    let function = tables.functions.get_mut(handle).ok_or(INVALID_HANDLE)?;
    if function.code.is_none() {
        function.code = Some(Unasked::take(gpu, driver.config.gpus[gpu].function_bytes)?);
    }
    Ok(())
}

/// Whether the program may ask later what it launched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    Arguments,
}

/// Checks a launch, and makes work of it.
///
/// # Safety
/// As for `launch`.
pub(super) unsafe fn prepare(
    driver: &Driver,
    tables: &Tables,
    handle: Handle<Function>,
    asked: &Launch,
    keep: Keep,
) -> Outcome<Submission> {
    let function = tables.functions.get(handle).ok_or(INVALID_HANDLE)?;
    let gpu = tables.context(function.context)?.gpu;
    let [grid_x, grid_y, grid_z, block_x, block_y, block_z] = asked.shape;
    let grid_fits = (1..=i32::MAX as u32).contains(&grid_x)
        && (1..=65535).contains(&grid_y)
        && (1..=65535).contains(&grid_z);
    let threads =
        [block_x, block_y, block_z].iter().try_fold(1_u32, |all, &one| all.checked_mul(one));
    let block_fits = threads.is_some_and(|threads| (1..=1024).contains(&threads)) && block_z <= 64;
    let shared_fits = asked.shared <= function.dynamic_shared.clamp(48 << 10, LARGEST_SHARED);
    if !grid_fits || !block_fits || !shared_fits {
        return Err(INVALID_VALUE);
    }
    let mut values = Vec::new();
    let kept = (keep == Keep::Arguments).then_some(&mut values);
    // SAFETY: the caller vouches for both lists.
    let arguments = unsafe { arguments(&function.parameters, asked.list, asked.extra, kept) }?;
    let kept = (keep == Keep::Arguments)
        .then(|| Arc::new(Asked::new(asked.function, asked.shape, asked.shared, values)));
    let call = KernelCall {
        kernel: function.kernel,
        name: Arc::clone(&function.name),
        arguments,
        rows: grid_y,
        fault: LaunchFault::None,
        asked: kept,
    };
    let length = call.length(&driver.config.gpus[gpu]);
    let engine = Some(EngineKind::Compute);
    Ok(Submission { engine, gpu, length, work: Work::Kernel(call) })
}

/// Reads the first arguments, and checks that all are there.
///
/// # Safety
/// As for `launch`.
unsafe fn arguments(
    parameters: &[Parameter],
    list: *mut *mut c_void,
    extra: *mut *mut c_void,
    mut kept: Option<&mut Vec<Box<[u8]>>>,
) -> Outcome<[u64; 4]> {
    let mut arguments = [0; 4];
    if parameters.is_empty() {
        return Ok(arguments);
    }
    if list.is_null() == extra.is_null() {
        return Err(INVALID_VALUE);
    }
    let buffer = if list.is_null() {
        // SAFETY: not null, so a list of names and values that ends with a null.
        let (buffer, size) = unsafe { buffer_of(extra) }?;
        let needed = parameters.last().map_or(0, |last| last.offset + last.size);
        if buffer.is_null() || size < needed {
            return Err(INVALID_VALUE);
        }
        Some(buffer)
    } else {
        None
    };
    for (at, parameter) in parameters.iter().enumerate() {
        let from = match buffer {
            Some(buffer) => buffer.wrapping_add(parameter.offset),
            // SAFETY: the list has one entry for each parameter.
            None => unsafe { list.add(at).read() }.cast::<u8>(),
        };
        if from.is_null() {
            return Err(INVALID_VALUE);
        }
        if let Some(kept) = &mut kept {
            let mut bytes = vec![0; parameter.size].into_boxed_slice();
            // SAFETY: the argument has the size that the kernel declares.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), parameter.size) };
            kept.push(bytes);
        }
        if let Some(argument) = arguments.get_mut(at) {
            let mut bytes = [0; 8];
            let size = parameter.size.min(8);
            // SAFETY: the argument has the size that the kernel declares.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size) };
            *argument = u64::from_ne_bytes(bytes);
        }
    }
    Ok(arguments)
}

/// # Safety
/// `extra` is a list of names and values that ends with a null.
unsafe fn buffer_of(extra: *mut *mut c_void) -> Outcome<(*mut u8, usize)> {
    let (mut buffer, mut size) = (std::ptr::null_mut(), 0);
    for pair in 0..8 {
        // SAFETY: the list has not ended yet.
        let name = unsafe { extra.add(2 * pair).read() } as usize;
        if name == 0 {
            return Ok((buffer, size));
        }
        // SAFETY: a name is followed by its value.
        let value = unsafe { extra.add(2 * pair + 1).read() };
        match name {
            1 => buffer = value.cast(),
            // SAFETY: the value points to the size.
            2 if !value.is_null() => size = unsafe { value.cast::<usize>().read() },
            _ => return Err(INVALID_VALUE),
        }
    }
    Err(INVALID_VALUE)
}
