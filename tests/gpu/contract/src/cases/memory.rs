//! Device memory, pinned memory, copies and fills.

use std::ffi::{c_uint, c_void};
use std::path::Path;

use super::{any_of, open, same, why};
use crate::gpu::code;

pub(super) fn what_is_written_is_read(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let words: Vec<u64> = (0..10_000).map(super::splitmix64).collect();
    let (a, b) = (gpu.alloc(80_000).map_err(why("a"))?, gpu.alloc(80_000).map_err(why("b"))?);
    gpu.write(a, &words).map_err(why("write"))?;
    gpu.copy(b, a, 80_000).map_err(why("copy"))?;
    same("all of it", gpu.read(b, 10_000).map_err(why("read"))? == words, true)?;
    same("a part", gpu.read(b + 800, 3).map_err(why("read"))?, words[100..103].to_vec())
}

pub(super) fn copies_may_not_leave_an_allocation(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let a = gpu.alloc(4096).map_err(why("allocate"))?;
    // Drivers hand out memory in larger pieces: far beyond the end.
    let far = 64 << 20;
    any_of("read beyond", gpu.read(a, far).map(drop), &[code::INVALID_VALUE])?;
    any_of("write to nothing", gpu.write(0, &[1]), &[code::INVALID_VALUE])?;
    gpu.write(a, &[1]).map_err(why("nothing is broken"))
}

pub(super) fn freed_twice_is_refused(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let a = gpu.alloc(1 << 20).map_err(why("allocate"))?;
    gpu.free(a).map_err(why("free"))?;
    any_of("free again", gpu.free(a), &[code::INVALID_VALUE])?;
    gpu.free(0).map_err(why("null may be freed"))
}

pub(super) fn nothing_and_too_much_are_refused(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    same("nothing", gpu.alloc(0), Err(code::INVALID_VALUE))?;
    let (_, total) = gpu.memory().map_err(why("memory"))?;
    same("too much", gpu.alloc(total + (1 << 30)), Err(code::OUT_OF_MEMORY))?;
    let a = gpu.alloc(1 << 20).map_err(why("goes on"))?;
    gpu.free(a).map_err(why("free"))
}

pub(super) fn free_memory_is_accounted(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let size = 256 << 20;
    let (before, total) = gpu.memory().map_err(why("memory"))?;
    let a = gpu.alloc(size).map_err(why("allocate"))?;
    let (during, again) = gpu.memory().map_err(why("memory"))?;
    gpu.free(a).map_err(why("free"))?;
    let (after, _) = gpu.memory().map_err(why("memory"))?;
    same("total stays", total, again)?;
    same("it counts", before - during >= size, true)?;
    same("it comes back", after, before)?;
    let (none_a, none_b) = (std::ptr::null_mut(), std::ptr::null_mut());
    same("nobody need ask", gpu.driver.cuMemGetInfo_v2(none_a, none_b), 0)
}

pub(super) fn an_address_tells_its_allocation(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let a = gpu.alloc(1 << 20).map_err(why("allocate"))?;
    let (mut base, mut size) = (0, 0);
    let asked = gpu.driver.cuMemGetAddressRange_v2(&raw mut base, &raw mut size, a + 777);
    same("asked", asked, 0)?;
    same("base and size", (base, size), (a, 1 << 20))?;
    gpu.free(a).map_err(why("free"))?;
    let asked = gpu.driver.cuMemGetAddressRange_v2(&raw mut base, &raw mut size, a);
    any_of("gone", Err(asked), &[code::NOT_FOUND, code::INVALID_VALUE])
}

pub(super) fn fills_of_all_widths(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let a = gpu.alloc(64).map_err(why("allocate"))?;
    same("32", gpu.driver.cuMemsetD32_v2(a, 0x1234_5678, 16), 0)?;
    same("16", gpu.driver.cuMemsetD16_v2(a + 8, 0xabcd, 4), 0)?;
    same("8", gpu.driver.cuMemsetD8_v2(a + 16, 0x5a, 8), 0)?;
    let words = gpu.read(a, 4).map_err(why("read"))?;
    let wanted = [
        0x1234_5678_1234_5678,
        0xabcd_abcd_abcd_abcd,
        0x5a5a_5a5a_5a5a_5a5a,
        0x1234_5678_1234_5678,
    ];
    same("words", words, wanted.to_vec())?;
    any_of("crooked", Err(gpu.driver.cuMemsetD32_v2(a + 2, 0, 1)), &[code::INVALID_VALUE])
}

/// `CUDA_MEMCPY2D` for 64-bit machines.
#[repr(C)]
#[derive(Default)]
struct Copy2D {
    src_x: usize,
    src_y: usize,
    src_kind: c_uint,
    src_host: usize,
    src_device: u64,
    src_array: usize,
    src_pitch: usize,
    dst_x: usize,
    dst_y: usize,
    dst_kind: c_uint,
    dst_host: usize,
    dst_device: u64,
    dst_array: usize,
    dst_pitch: usize,
    width: usize,
    height: usize,
}

pub(super) fn pitched_copies(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let (mut a, mut pitch) = (0, 0);
    same("pitched", gpu.driver.cuMemAllocPitch_v2(&raw mut a, &raw mut pitch, 80, 5, 8), 0)?;
    same("rows are apart", pitch >= 80 && pitch % 8 == 0, true)?;
    let words: Vec<u64> = (0..50).collect();
    let to = Copy2D {
        src_kind: 1,
        src_host: words.as_ptr() as usize,
        src_pitch: 80,
        dst_kind: 2,
        dst_device: a,
        dst_pitch: pitch,
        width: 80,
        height: 5,
        ..Copy2D::default()
    };
    same("copy", gpu.driver.cuMemcpy2D_v2((&raw const to).cast()), 0)?;
    let row = gpu.read(a + 3 * pitch as u64, 10).map_err(why("read"))?;
    same("row 3", row, (30..40).collect::<Vec<u64>>())?;
    let mut corner = [0_u64; 4];
    let back = Copy2D {
        src_x: 64,
        src_y: 1,
        src_kind: 2,
        src_device: a,
        src_pitch: pitch,
        dst_kind: 1,
        dst_host: corner.as_mut_ptr() as usize,
        dst_pitch: 16,
        width: 16,
        height: 2,
        ..Copy2D::default()
    };
    same("copy back", gpu.driver.cuMemcpy2D_v2((&raw const back).cast()), 0)?;
    same("a corner", corner, [18, 19, 28, 29])
}

pub(super) fn pinned_memory_is_known(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let pinned = gpu.pinned(512).map_err(why("pin"))?;
    let mut device = 0;
    let asked = gpu.driver.cuMemHostGetDevicePointer_v2(&raw mut device, pinned.pointer(), 0);
    same("device pointer", asked, 0)?;
    // Kernels reach it under that address.
    gpu.launch(0, "acb_fill", &[device, 512, 9]).map_err(why("launch"))?;
    gpu.synchronize().map_err(why("synchronize"))?;
    same("written by a kernel", pinned.get(511), super::splitmix64(9 + 511))
}

pub(super) fn registered_twice_is_refused(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let mut pages = vec![0_u64; 4096];
    let start = pages.as_mut_ptr() as usize;
    let start = (start.next_multiple_of(4096)) as *mut c_void;
    let driver = &gpu.driver;
    same("register", driver.cuMemHostRegister_v2(start, 8192, 0), 0)?;
    same("again", driver.cuMemHostRegister_v2(start, 8192, 0), code::ALREADY_REGISTERED)?;
    same("unregister", driver.cuMemHostUnregister(start), 0)?;
    let again = driver.cuMemHostUnregister(start);
    any_of("again", Err(again), &[code::NOT_REGISTERED, code::INVALID_VALUE])
}

pub(super) fn stream_ordered_allocation(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(1).map_err(why("stream"))?;
    let mut a = 0;
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut a, 1 << 20, stream), 0)?;
    gpu.launch(stream, "acb_fill", &[a, 1000, 5]).map_err(why("launch"))?;
    let pinned = gpu.pinned(1000).map_err(why("pin"))?;
    same("copy", gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), a, 8000, stream), 0)?;
    same("free", gpu.driver.cuMemFreeAsync(a, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("used before it was freed", pinned.get(999), super::splitmix64(5 + 999))
}

pub(super) fn pointers_have_attributes(path: &Path) -> Result<(), String> {
    const MEMORY_TYPE: c_uint = 2;
    let gpu = open(path)?;
    let a = gpu.alloc(4096).map_err(why("allocate"))?;
    let pinned = gpu.pinned(8).map_err(why("pin"))?;
    let kind = |pointer: u64| {
        let mut kind: c_uint = 0;
        let value = (&raw mut kind).cast();
        match gpu.driver.cuPointerGetAttribute(value, MEMORY_TYPE, pointer) {
            0 => Ok(kind),
            code => Err(code),
        }
    };
    same("device memory", kind(a + 100), Ok(2))?;
    same("pinned memory", kind(pinned.pointer() as u64), Ok(1))?;
    let local = 0_u64;
    same("other memory", kind(&raw const local as u64), Err(code::INVALID_VALUE))
}

/// How much of a program's variable the boolean attributes take.
pub(super) fn boolean_attributes_have_32_bits(path: &Path) -> Result<(), String> {
    const UNTOUCHED: u64 = 0xa5a5_a5a5_a5a5_a5a5;
    let gpu = open(path)?;
    let memory = gpu.alloc(4096).map_err(why("allocate"))?;
    // SYNC_MEMOPS, IS_MANAGED, IS_LEGACY_CUDA_IPC_CAPABLE, MAPPED, IS_GPU_DIRECT_RDMA_CAPABLE
    for attribute in [6, 8, 10, 13, 15] {
        let mut value = UNTOUCHED;
        let place = (&raw mut value).cast();
        let code = gpu.driver.cuPointerGetAttribute(place, attribute, memory);
        same("asked", (attribute, code), (attribute, 0))?;
        let written = (0..8).filter(|at| (value >> (8 * at)) as u8 != 0xa5).count();
        same("bytes written", (attribute, written), (attribute, 4))?;
        same("a truth value", (attribute, value as u32 <= 1), (attribute, true))?;
    }
    Ok(())
}

pub(super) fn copies_between_contexts_have_rows_and_layers(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let mut context = 0;
    same("context", gpu.driver.cuCtxGetCurrent(&raw mut context), 0)?;
    let (a, b) = (gpu.alloc(256).map_err(why("a"))?, gpu.alloc(256).map_err(why("b"))?);
    let words: Vec<u64> = (0..32).collect();
    gpu.write(a, &words).map_err(why("write"))?;
    gpu.write(b, &[0; 32]).map_err(why("write"))?;
    // CUDA_MEMCPY3D_PEER, from rows of 32 bytes to rows of 64: two layers of two rows of 16 bytes.
    let side = |at: u64, row: u64| [0, 0, 0, 0, 2, 0, at, 0, context as u64, row, 2];
    let shape: Vec<u64> = side(a, 32).into_iter().chain(side(b, 64)).chain([16, 2, 2]).collect();
    same("copy", gpu.driver.cuMemcpy3DPeer(shape.as_ptr().cast()), 0)?;
    gpu.synchronize().map_err(why("synchronize"))?;
    let read = gpu.read(b, 32).map_err(why("read"))?;
    let rows: Vec<[u64; 3]> = (0..4).map(|row| [0, 1, 2].map(|at| read[row * 8 + at])).collect();
    same("rows", rows, vec![[0, 1, 0], [4, 5, 0], [8, 9, 0], [12, 13, 0]])
}
