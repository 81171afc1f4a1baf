//! Arrays: memory of a layout that programs do not see, reached by copies alone.
//! Here their rows lie one behind the other.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint};

use acb_cuda_abi::sys;
use simcuda_device::fault::FaultKind;

use super::put;
use crate::code::{INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, Outcome};
use crate::driver::{self, Driver};
use crate::handles::Handle;
use crate::objects::{Array, Tables};
use crate::physical::Physical;
use crate::space::{ALIGNMENT, GRANULARITY, RegionKind};

/// Layers are as good as depth here; surfaces and gathers only add uses.
const LAYERED: c_uint = 1;
/// `CUDA_ARRAY3D_SPARSE`
pub(crate) const SPARSE: c_uint = 0x40;
const KNOWN_FLAGS: c_uint = LAYERED | 2 | 8 | SPARSE;

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
        let size = [(*description).Width, (*description).Height, 0];
        create(array, &Wanted { size, format, channels: (*description).NumChannels, flags: 0 })
    }

    fn cuArray3DCreate_v2(
        array: *mut sys::CUarray,
        description: *const sys::CUDA_ARRAY3D_DESCRIPTOR,
    ) {
        if description.is_null() {
            driver::get()?;
            return Err(INVALID_VALUE);
        }
        create(array, &Wanted::read(description))
    }

    fn cuArrayDestroy(array: sys::CUarray) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let handle = Handle::from_bits(array as u64);
        let own = tables.arrays.get(handle).ok_or(INVALID_HANDLE)?;
        if own.is_level {
            return Err(INVALID_HANDLE);
        }
        let context = own.context;
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

/// What an array is to be.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// Elements in a row, rows, layers.
    pub(super) size: [usize; 3],
    pub(super) format: c_uint,
    pub(super) channels: c_uint,
    pub(super) flags: c_uint,
}

impl Wanted {
    /// # Safety
    /// `description` is the structure that it should be.
    pub(super) unsafe fn read(description: *const sys::CUDA_ARRAY3D_DESCRIPTOR) -> Wanted {
        // SAFETY: the caller vouches for it; the format is read as a number.
        unsafe {
            let format = (&raw const (*description).Format).cast::<c_uint>().read();
            let size = [(*description).Width, (*description).Height, (*description).Depth];
            let (channels, flags) = ((*description).NumChannels, (*description).Flags);
            Wanted { size, format, channels, flags }
        }
    }
}

/// # Safety
/// `array` is null or may be written.
unsafe fn create(array: *mut sys::CUarray, wanted: &Wanted) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    if array.is_null() {
        driver.current(&tables)?;
        return Err(INVALID_VALUE);
    }
    let handle = make(driver, &mut tables, wanted, false)?;
    // SAFETY: the caller vouches for it.
    unsafe { put(array, handle.bits() as sys::CUarray) }
}

/// An array in the current context; a sparse one has addresses alone.
pub(super) fn make(
    driver: &Driver,
    tables: &mut Tables,
    wanted: &Wanted,
    is_level: bool,
) -> Outcome<Handle<Array>> {
    let Wanted { size, format, channels, flags } = *wanted;
    let context = driver.current(tables)?;
    let element = element(format).ok_or(INVALID_VALUE)?;
    let deep_but_flat = size[2] > 0 && size[1] == 0 && flags & LAYERED == 0;
    if size[0] == 0 || !matches!(channels, 1 | 2 | 4) || deep_but_flat {
        return Err(INVALID_VALUE);
    }
    if flags & !KNOWN_FLAGS != 0 || (is_level && flags & SPARSE != 0) {
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
    let sparse = flags & SPARSE != 0;
    let unit = if sparse { GRANULARITY } else { ALIGNMENT };
    let length = bytes.checked_next_multiple_of(unit).ok_or(OUT_OF_MEMORY)?;
    let memory = if sparse { None } else { Some(Physical::new(gpu, length)?) };
    let start = tables.space.add(length, unit, RegionKind::Array)?;
    if let Some(memory) = memory {
        tables.space.map(start, length, memory, 0, 1 << gpu)?;
    }
    let made = Array { context, start, row, size, format, channels, flags, is_level };
    Ok(tables.arrays.insert(made))
}

/// Bytes of one channel, by `CUarray_format`.
pub(super) fn element(format: c_uint) -> Option<usize> {
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
        self.mipmaps.retain(|mipmap| mipmap.levels.iter().all(|level| !own.contains(level)));
        own.into_iter().for_each(|handle| self.remove_array(handle));
    }

    /// Ends one.
    pub(super) fn remove_array(&mut self, handle: Handle<Array>) {
        if let Some(array) = self.arrays.remove(handle) {
            self.space.remove(array.start);
        }
    }
}
