//! Arrays, and copies in two and three dimensions.

use std::path::Path;

use super::graphs::{Copy, End};
use super::{any_of, open, same, why};
use crate::driver::Handle;
use crate::gpu::{Gpu, code};

const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
/// Two 32-bit numbers in an element.
const UNSIGNED_32: u32 = 3;

/// `CUDA_ARRAY3D_DESCRIPTOR`
#[repr(C)]
#[derive(Debug, Default, PartialEq)]
struct Shape {
    width: usize,
    height: usize,
    depth: usize,
    format: u32,
    channels: u32,
    flags: u32,
}

fn create(gpu: &Gpu, width: usize, height: usize, depth: usize) -> Result<Handle, String> {
    let shape = Shape { width, height, depth, format: UNSIGNED_32, channels: 2, flags: 0 };
    let mut array = 0;
    let made = gpu.driver.cuArray3DCreate_v2(&raw mut array, (&raw const shape).cast());
    same("create", made, 0).map(|()| array)
}

pub(super) fn rows_and_layers_are_found_again(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let array = create(&gpu, 10, 4, 3)?;
    let words: Vec<u64> = (0..120).map(super::splitmix64).collect();
    let whole = Copy {
        from: End {
            kind: HOST,
            host: words.as_ptr() as usize,
            pitch: 80,
            height: 4,
            ..End::default()
        },
        to: End { kind: ARRAY, array, ..End::default() },
        width: 80,
        height: 4,
        depth: 3,
    };
    same("in", gpu.driver.cuMemcpy3D_v2((&raw const whole).cast()), 0)?;
    // A corner of the last two layers, to device memory, and from there.
    let a = gpu.alloc(4096).map_err(why("allocate"))?;
    let corner = Copy {
        from: End { kind: ARRAY, array, x: 64, y: 2, z: 1, ..End::default() },
        to: End { kind: DEVICE, device: a, pitch: 16, height: 2, ..End::default() },
        width: 16,
        height: 2,
        depth: 2,
    };
    same("out", gpu.driver.cuMemcpy3D_v2((&raw const corner).cast()), 0)?;
    let at = |x: usize, y: usize, z: usize| words[x + 10 * y + 40 * z];
    let wanted = [1, 2].map(|z| [2, 3].map(|y| [at(8, y, z), at(9, y, z)])).concat().concat();
    same("a corner", gpu.read(a, 8), Ok(wanted))?;
    let beyond = Copy { width: 88, ..whole };
    let refused = gpu.driver.cuMemcpy3D_v2((&raw const beyond).cast());
    any_of("too wide", Err(refused), &[code::INVALID_VALUE])?;
    same("destroy", gpu.driver.cuArrayDestroy(array), 0)
}

pub(super) fn arrays_tell_what_they_are(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let array = create(&gpu, 10, 4, 3)?;
    let mut told = Shape::default();
    same("told", driver.cuArray3DGetDescriptor_v2((&raw mut told).cast(), array), 0)?;
    let wanted =
        Shape { width: 10, height: 4, depth: 3, format: UNSIGNED_32, channels: 2, flags: 0 };
    same("shape", told, wanted)?;
    let mut line = 0;
    // width, height, format and channels
    let shape = [16_usize, 0, UNSIGNED_32 as usize | 1 << 32];
    same("a line", driver.cuArrayCreate_v2(&raw mut line, shape.as_ptr().cast()), 0)?;
    let numbers: Vec<u32> = (100..116).collect();
    same("in", driver.cuMemcpyHtoA_v2(line, 0, numbers.as_ptr().cast(), 64), 0)?;
    let mut back = [0_u32; 4];
    same("out", driver.cuMemcpyAtoH_v2(back.as_mut_ptr().cast(), line, 48, 16), 0)?;
    same("its end", back, [112, 113, 114, 115])?;
    let nothing = Shape { format: UNSIGNED_32, channels: 1, ..Shape::default() };
    let made = driver.cuArray3DCreate_v2(&raw mut line, (&raw const nothing).cast());
    any_of("no width", Err(made), &[code::INVALID_VALUE])?;
    let three = Shape { width: 4, format: UNSIGNED_32, channels: 3, ..Shape::default() };
    let made = driver.cuArray3DCreate_v2(&raw mut line, (&raw const three).cast());
    any_of("three channels", Err(made), &[code::INVALID_VALUE])
}

pub(super) fn arrays_count(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let (before, _) = gpu.memory().map_err(why("memory"))?;
    let array = create(&gpu, 2048, 2048, 4)?;
    let (during, _) = gpu.memory().map_err(why("memory"))?;
    same("it counts", before - during >= 2048 * 2048 * 4 * 8, true)?;
    same("destroy", gpu.driver.cuArrayDestroy(array), 0)?;
    let (after, _) = gpu.memory().map_err(why("memory"))?;
    same("it comes back", after, before)
}

pub(super) fn deep_copies_of_plain_memory(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let words: Vec<u64> = (0..120).collect();
    let (a, b) = (gpu.alloc(960).map_err(why("a"))?, gpu.alloc(960).map_err(why("b"))?);
    gpu.write(a, &words).map_err(why("write"))?;
    let part = Copy {
        from: End {
            kind: DEVICE,
            device: a,
            x: 8,
            y: 1,
            z: 1,
            pitch: 80,
            height: 4,
            ..End::default()
        },
        to: End { kind: DEVICE, device: b, pitch: 24, height: 2, ..End::default() },
        width: 24,
        height: 2,
        depth: 2,
    };
    same("copy", gpu.driver.cuMemcpy3D_v2((&raw const part).cast()), 0)?;
    let wanted = vec![51, 52, 53, 61, 62, 63, 91, 92, 93, 101, 102, 103];
    same("the inside", gpu.read(b, 12), Ok(wanted))?;
    let narrow = Copy { from: End { pitch: 8, ..part.from }, ..part };
    let refused = gpu.driver.cuMemcpy3D_v2((&raw const narrow).cast());
    any_of("rows wider than apart", Err(refused), &[code::INVALID_VALUE])
}

pub(super) fn levels_of_a_mipmap_are_arrays(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let shape =
        Shape { width: 64, height: 32, depth: 0, format: UNSIGNED_32, channels: 2, flags: 0 };
    let mut mipmap = 0;
    let made = gpu.driver.cuMipmappedArrayCreate(&raw mut mipmap, (&raw const shape).cast(), 3);
    same("create", made, 0)?;
    let level = |at| {
        let mut array = 0;
        (gpu.driver.cuMipmappedArrayGetLevel(&raw mut array, mipmap, at), array)
    };
    for at in 0..3 {
        let (found, array) = level(at);
        same("level", found, 0)?;
        let mut told = Shape::default();
        let asked = gpu.driver.cuArray3DGetDescriptor_v2((&raw mut told).cast(), array);
        same("ask", asked, 0)?;
        same("halves", (told.width, told.height), (64 >> at, 32 >> at))?;
        let refused = gpu.driver.cuArrayDestroy(array);
        any_of(
            "it goes with the whole",
            Err(refused),
            &[code::INVALID_HANDLE, code::INVALID_VALUE],
        )?;
    }
    any_of("no more", Err(level(3).0), &[code::INVALID_VALUE])?;
    same("destroy", gpu.driver.cuMipmappedArrayDestroy(mipmap), 0)
}

/// `CUDA_RESOURCE_DESC` for linear memory of 32-bit words.
fn linear(address: u64, bytes: usize) -> [u64; 18] {
    let fields = [2, address, 1 << 32 | u64::from(UNSIGNED_32), bytes as u64];
    std::array::from_fn(|at| fields.get(at).copied().unwrap_or(0))
}

pub(super) fn textures_show_memory_that_is_there(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let memory = gpu.alloc(1 << 20).map_err(why("allocate"))?;
    let texture = [0_u64; 13];
    let make = |resource: &[u64; 18]| {
        let mut object = 0;
        let resource = resource.as_ptr().cast();
        let texture = texture.as_ptr().cast();
        let none = std::ptr::null();
        (gpu.driver.cuTexObjectCreate(&raw mut object, resource, texture, none), object)
    };
    let (made, object) = make(&linear(memory, 1 << 20));
    same("create", made, 0)?;
    let mut told = [9_u64; 18];
    let asked = gpu.driver.cuTexObjectGetResourceDesc(told.as_mut_ptr().cast(), object);
    same("ask", (asked, told[1], told[3]), (0, memory, 1 << 20))?;
    same("destroy", gpu.driver.cuTexObjectDestroy(object), 0)?;
    let (refused, _) = make(&linear(memory + 4, 1 << 19));
    any_of("badly aligned", Err(refused), &[code::INVALID_VALUE])?;
    let (refused, _) = make(&linear(memory, 0));
    any_of("nothing", Err(refused), &[code::INVALID_VALUE])
}
