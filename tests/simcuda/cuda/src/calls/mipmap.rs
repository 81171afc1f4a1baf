//! Mipmapped arrays: an array for each level, half as large as the one before.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use super::array::{Wanted, make};
use super::put;
use crate::code::{INVALID_HANDLE, INVALID_VALUE};
use crate::driver;
use crate::handles::Handle;
use crate::objects::Mipmap;

calls! {
    fn cuMipmappedArrayCreate(
        mipmap: *mut sys::CUmipmappedArray,
        description: *const sys::CUDA_ARRAY3D_DESCRIPTOR,
        levels: c_uint,
    ) {
        let driver = driver::get()?;
        if description.is_null() || mipmap.is_null() || levels == 0 {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let whole = Wanted::read(description);
        // No more levels than halves: the clamp that the documentation names.
        let largest = whole.size.iter().copied().max().unwrap_or(0).max(1);
        let levels = levels.min(largest.ilog2() + 1);
        let mut made = Mipmap { levels: Vec::new() };
        for level in 0..levels {
            let size = whole.size.map(|side| if side == 0 { 0 } else { (side >> level).max(1) });
            match make(driver, &mut tables, &Wanted { size, ..whole }, true) {
                Ok(array) => made.levels.push(array),
                Err(code) => {
                    made.levels.into_iter().for_each(|array| tables.remove_array(array));
                    return Err(code);
                }
            }
        }
        put(mipmap, tables.mipmaps.insert(made).bits() as sys::CUmipmappedArray)
    }

    fn cuMipmappedArrayGetLevel(
        array: *mut sys::CUarray,
        mipmap: sys::CUmipmappedArray,
        level: c_uint,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let own = tables.mipmaps.get(Handle::from_bits(mipmap as u64)).ok_or(INVALID_HANDLE)?;
        let level = own.levels.get(level as usize).ok_or(INVALID_VALUE)?;
        put(array, level.bits() as sys::CUarray)
    }

    fn cuMipmappedArrayDestroy(mipmap: sys::CUmipmappedArray) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let handle = Handle::from_bits(mipmap as u64);
        let own = tables.mipmaps.get(handle).ok_or(INVALID_HANDLE)?;
        let context = own.levels.first().and_then(|&level| Some(tables.arrays.get(level)?.context));
        let mut tables =
            driver.wait(tables, |tables| context.is_none_or(|context| tables.is_drained(context)));
        let own = tables.mipmaps.remove(handle).ok_or(INVALID_HANDLE)?;
        own.levels.into_iter().for_each(|array| tables.remove_array(array));
        Ok(())
    }
}
