//! Arrays: memory of a layout that programs do not see, reached by copies alone.
//! Here their rows lie one behind the other.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint};

use acb_cuda_abi::sys;
use simcuda_device::fault::FaultKind;

use super::put;
use crate::code::{INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, Outcome};
use crate::driver;
use crate::handles::Handle;
use crate::objects::{Array, Tables};
use crate::physical::Physical;
use crate::space::{ALIGNMENT, RegionKind};

/// Layers are as good as depth here; surfaces and gathers only add uses.
const LAYERED: c_uint = 1;
const KNOWN_FLAGS: c_uint = LAYERED | 2 | 8;

calls! {
    fn cuArrayCreate_v2(
        array: *mut sys::CUarray,
        description: *const sys::CUDA_ARRAY_DESCRIPTOR,
    ) {
        if description.is_null() {
            driver::get()?;
            return Err(INVALID_VALUE);
        }
        let format = (&raw const (*description).Format).cast::<c_uint>().read();
        let (width, height) = ((*description).Width, (*description).Height);
        create(array, [width, height, 0], format, (*description).NumChannels, 0)
    }

    fn cuArray3DCreate_v2(
        array: *mut sys::CUarray,
        description: *const sys::CUDA_ARRAY3D_DESCRIPTOR,
    ) {
        if description.is_null() {
            driver::get()?;
            return Err(INVALID_VALUE);
        }
        let format = (&raw const (*description).Format).cast::<c_uint>().read();
        let size = [(*description).Width, (*description).Height, (*description).Depth];
        create(array, size, format, (*description).NumChannels, (*description).Flags)
    }

    fn cuArrayDestroy(array: sys::CUarray) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let handle = Handle::from_bits(array as u64);
        let context = tables.arrays.get(handle).ok_or(INVALID_HANDLE)?.context;
        let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
        let array = tables.arrays.remove(handle).ok_or(INVALID_HANDLE)?;
        tables.space.remove(array.start);
        Ok(())
    }

    fn cuArrayGetDescriptor_v2(
        description: *mut sys::CUDA_ARRAY_DESCRIPTOR,
        array: sys::CUarray,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let array = tables.arrays.get(Handle::from_bits(array as u64)).ok_or(INVALID_HANDLE)?;
        if description.is_null() {
            return Err(INVALID_VALUE);
        }
        (*description).Width = array.size[0];
        (*description).Height = array.size[1];
        (&raw mut (*description).Format).cast::<c_uint>().write(array.format);
        (*description).NumChannels = array.channels;
        Ok(())
    }

    fn cuArray3DGetDescriptor_v2(
        description: *mut sys::CUDA_ARRAY3D_DESCRIPTOR,
        array: sys::CUarray,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let array = tables.arrays.get(Handle::from_bits(array as u64)).ok_or(INVALID_HANDLE)?;
        if description.is_null() {
            return Err(INVALID_VALUE);
        }
        (*description).Width = array.size[0];
        (*description).Height = array.size[1];
        (*description).Depth = array.size[2];
        (&raw mut (*description).Format).cast::<c_uint>().write(array.format);
        (*description).NumChannels = array.channels;
        (*description).Flags = array.flags;
        Ok(())
    }

    fn cuArrayGetMemoryRequirements(
        _requirements: *mut sys::CUDA_ARRAY_MEMORY_REQUIREMENTS,
        _array: sys::CUarray,
        _dev: c_int,
    ) {
        // For arrays whose memory the program maps itself.
        driver::get()?;
        Err(NOT_SUPPORTED)
    }
}

/// # Safety
/// `array` is null or may be written.
unsafe fn create(
    array: *mut sys::CUarray,
    size: [usize; 3],
    format: c_uint,
    channels: c_uint,
    flags: c_uint,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let context = driver.current(&tables)?;
    let element = element(format).ok_or(INVALID_VALUE)?;
    let deep_but_flat = size[2] > 0 && size[1] == 0 && flags & LAYERED == 0;
    if array.is_null() || size[0] == 0 || !matches!(channels, 1 | 2 | 4) || deep_but_flat {
        return Err(INVALID_VALUE);
    }
    if flags & !KNOWN_FLAGS != 0 {
        return Err(NOT_SUPPORTED);
    }
    tables.check_unsafe(driver::caller())?;
    if driver.faults.strikes(FaultKind::OutOfMemory, None) {
        return Err(OUT_OF_MEMORY);
    }
    let gpu = tables.context(context)?.gpu;
    let row = size[0].checked_mul(element * channels as usize).ok_or(INVALID_VALUE)?;
    let rows = size[1].max(1).checked_mul(size[2].max(1)).ok_or(INVALID_VALUE)?;
    let bytes = row.checked_mul(rows).ok_or(OUT_OF_MEMORY)?;
    let length = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(OUT_OF_MEMORY)?;
    let memory = Physical::new(gpu, length)?;
    let start = tables.space.add(length, ALIGNMENT, RegionKind::Array)?;
    tables.space.map(start, length, memory, 0, 1 << gpu)?;
    let made = Array { context, start, row, size, format, channels, flags };
    let handle = tables.arrays.insert(made);
    // SAFETY: the caller vouches for it.
    unsafe { put(array, handle.bits() as sys::CUarray) }
}

/// Bytes of one channel, by `CUarray_format`.
fn element(format: c_uint) -> Option<usize> {
    match format {
        0x01 | 0x08 => Some(1),
        0x02 | 0x09 | 0x10 => Some(2),
        0x03 | 0x0a | 0x20 => Some(4),
        _ => None,
    }
}

impl Tables {
    /// Ends a context's arrays.
    pub(crate) fn remove_arrays(&mut self, context: Handle<crate::objects::Context>) {
        let own: Vec<_> = self
            .arrays
            .iter()
            .filter(|(_, array)| array.context == context)
            .map(|(handle, _)| handle)
            .collect();
        for handle in own {
            if let Some(array) = self.arrays.remove(handle) {
                self.space.remove(array.start);
            }
        }
    }
}
