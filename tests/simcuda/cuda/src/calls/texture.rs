//! Texture and surface objects: what a kernel would read through them is checked when they are made, and kept.
//! No kernel here reads them.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_uint, c_void};

use acb_cuda_abi::sys;

use super::array::element;
use super::put;
use crate::code::{INVALID_HANDLE, INVALID_VALUE, Outcome};
use crate::driver;
use crate::handles::Handle;
use crate::objects::{Array, Tables};
use crate::space::Access;

const ARRAY: c_uint = 0;
const MIPMAP: c_uint = 1;
const LINEAR: c_uint = 2;
const PITCH_2D: c_uint = 3;
/// The device's attribute of alignment, and that of pitches.
const ALIGNMENT: u64 = 512;
const PITCH_ALIGNMENT: usize = 32;
/// Bytes of a `CUDA_RESOURCE_DESC`.
const DESCRIPTION: usize = size_of::<sys::CUDA_RESOURCE_DESC>();

calls! {
    fn cuTexObjectCreate(
        object: *mut u64,
        resource: *const sys::CUDA_RESOURCE_DESC,
        texture: *const sys::CUDA_TEXTURE_DESC,
        _view: *const sys::CUDA_RESOURCE_VIEW_DESC,
    ) {
        if texture.is_null() {
            driver::get()?;
            return Err(INVALID_VALUE);
        }
        create(object, resource, &[ARRAY, MIPMAP, LINEAR, PITCH_2D])
    }

    fn cuTexObjectDestroy(object: u64) {
        destroy(object)
    }

    fn cuTexObjectGetResourceDesc(resource: *mut sys::CUDA_RESOURCE_DESC, object: u64) {
        tell(resource, object)
    }

    fn cuSurfObjectCreate(object: *mut u64, resource: *const sys::CUDA_RESOURCE_DESC) {
        create(object, resource, &[ARRAY])
    }

    fn cuSurfObjectDestroy(object: u64) {
        destroy(object)
    }

    fn cuSurfObjectGetResourceDesc(resource: *mut sys::CUDA_RESOURCE_DESC, object: u64) {
        tell(resource, object)
    }
}

/// # Safety
/// `object` is null or may be written, `resource` null or the structure that it should be.
unsafe fn create(
    object: *mut u64,
    resource: *const sys::CUDA_RESOURCE_DESC,
    kinds: &[c_uint],
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let context = driver.current(&tables)?;
    let gpu = tables.context(context)?.gpu;
    if object.is_null() || resource.is_null() {
        return Err(INVALID_VALUE);
    }
    let fields: *const u8 = resource.cast();
    // SAFETY: not null: a kind, then at 8 what it needs.
    let (kind, inner, copy) = unsafe {
        let copy = fields.cast::<[u8; DESCRIPTION]>().read_unaligned();
        (fields.cast::<c_uint>().read(), fields.add(8), copy)
    };
    if !kinds.contains(&kind) {
        return Err(INVALID_VALUE);
    }
    // SAFETY: each kind's own fields: a handle, or an address, a format, channels, and sizes.
    unsafe {
        let first = inner.cast::<u64>().read_unaligned();
        match kind {
            ARRAY => {
                let handle: Handle<Array> = Handle::from_bits(first);
                tables.arrays.get(handle).ok_or(INVALID_HANDLE)?;
            }
            MIPMAP => {
                tables.mipmaps.get(Handle::from_bits(first)).ok_or(INVALID_HANDLE)?;
            }
            _ => {
                let [format, channels] = inner.add(8).cast::<[c_uint; 2]>().read_unaligned();
                let [a, b, pitch] = inner.add(16).cast::<[usize; 3]>().read_unaligned();
                let each = element(format).ok_or(INVALID_VALUE)? * channels as usize;
                let bytes = if kind == LINEAR { a } else { pitch.saturating_mul(b) };
                let narrow = kind == PITCH_2D
                    && (pitch < a.saturating_mul(each) || !pitch.is_multiple_of(PITCH_ALIGNMENT));
                if !matches!(channels, 1 | 2 | 4) || bytes == 0 || narrow {
                    return Err(INVALID_VALUE);
                }
                if !first.is_multiple_of(ALIGNMENT) {
                    return Err(INVALID_VALUE);
                }
                tables.space.segments(gpu, first, bytes, Access::Read).ok_or(INVALID_VALUE)?;
            }
        }
    }
    let handle = tables.textures.insert(copy);
    // SAFETY: the caller vouches for it.
    unsafe { put(object, handle.bits()) }
}

fn destroy(object: u64) -> Outcome {
    let mut tables = driver::get()?.lock();
    tables.textures.remove(Handle::from_bits(object)).ok_or(INVALID_VALUE).map(drop)
}

/// # Safety
/// `resource` is null or may be written.
unsafe fn tell(resource: *mut sys::CUDA_RESOURCE_DESC, object: u64) -> Outcome {
    let tables: &Tables = &driver::get()?.lock();
    let found = tables.textures.get(Handle::from_bits(object)).ok_or(INVALID_VALUE)?;
    if resource.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and of this size.
    unsafe { resource.cast::<c_void>().cast::<[u8; DESCRIPTION]>().write_unaligned(*found) };
    Ok(())
}
