//! Pools of stream-ordered allocations, and what of memory can be shared.

use std::path::Path;

use super::{any_of, open, same, why};
use crate::driver::Handle;
use crate::gpu::{Gpu, check, code};

const NON_BLOCKING: u32 = 1;
const SIZE: usize = 64 << 20;
const RELEASE_THRESHOLD: u32 = 4;
const RESERVED: u32 = 5;
const RESERVED_HIGH: u32 = 6;
const USED: u32 = 7;
const USED_HIGH: u32 = 8;

fn default_pool(gpu: &Gpu) -> Result<Handle, String> {
    let mut pool = 0;
    same("pool", gpu.driver.cuDeviceGetDefaultMemPool(&raw mut pool, 0), 0).map(|()| pool)
}

fn attribute(gpu: &Gpu, pool: Handle, attribute: u32) -> Result<u64, String> {
    let mut value = 0;
    same("asked", gpu.driver.cuMemPoolGetAttribute(pool, attribute, &raw mut value), 0)?;
    Ok(value)
}

fn set(gpu: &Gpu, pool: Handle, attribute: u32, mut value: u64) -> Result<(), u32> {
    check(gpu.driver.cuMemPoolSetAttribute(pool, attribute, &raw mut value))
}

pub(super) fn pools_keep_account(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let pool = default_pool(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (mut a, mut b) = (0, 0);
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut a, SIZE, stream), 0)?;
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut b, SIZE, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("used", attribute(&gpu, pool, USED)?, 2 * SIZE as u64)?;
    same("reserved", attribute(&gpu, pool, RESERVED)? >= 2 * SIZE as u64, true)?;
    same("free", gpu.driver.cuMemFreeAsync(a, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("used", attribute(&gpu, pool, USED)?, SIZE as u64)?;
    same("the most", attribute(&gpu, pool, USED_HIGH)?, 2 * SIZE as u64)?;
    set(&gpu, pool, USED_HIGH, 0).map_err(why("set back"))?;
    set(&gpu, pool, RESERVED_HIGH, 0).map_err(why("set back"))?;
    same("the most since", attribute(&gpu, pool, USED_HIGH)?, SIZE as u64)?;
    any_of("no other value", set(&gpu, pool, USED_HIGH, 5), &[code::INVALID_VALUE])?;
    gpu.free(b).map_err(why("the plain call frees too"))?;
    same("used", attribute(&gpu, pool, USED)?, 0)
}

pub(super) fn a_pool_keeps_what_it_may(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let pool = default_pool(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (before, _) = gpu.memory().map_err(why("memory"))?;
    set(&gpu, pool, RELEASE_THRESHOLD, u64::MAX).map_err(why("threshold"))?;
    let mut a = 0;
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut a, SIZE, stream), 0)?;
    same("free", gpu.driver.cuMemFreeAsync(a, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("kept", attribute(&gpu, pool, RESERVED)? >= SIZE as u64, true)?;
    let (kept, _) = gpu.memory().map_err(why("memory"))?;
    same("on the GPU", before - kept >= SIZE, true)?;
    same("trim", gpu.driver.cuMemPoolTrimTo(pool, 0), 0)?;
    same("given back", attribute(&gpu, pool, RESERVED)?, 0)?;
    let (after, _) = gpu.memory().map_err(why("memory"))?;
    same("on the GPU", after >= kept + SIZE, true)
}

pub(super) fn freed_memory_waits_for_its_stream(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let other = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let sum = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(sum, &[0]).map_err(why("write"))?;
    let (mut a, mut b) = (0, 0);
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut a, SIZE, stream), 0)?;
    gpu.launch(stream, "acb_fill", &[a, 1000, 3]).map_err(why("launch"))?;
    gpu.launch(stream, "acb_spin", &[50_000_000]).map_err(why("launch"))?;
    gpu.launch(stream, "acb_sum", &[a, 1000, sum]).map_err(why("launch"))?;
    same("free", gpu.driver.cuMemFreeAsync(a, stream), 0)?;
    // What another stream is given now is not what the first one still reads.
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut b, SIZE, other), 0)?;
    gpu.launch(other, "acb_fill", &[b, 1000, 4]).map_err(why("launch"))?;
    gpu.synchronize().map_err(why("synchronize"))?;
    let wanted = (0..1000).fold(0_u64, |sum, at| sum.wrapping_add(super::splitmix64(3 + at)));
    same("untouched", gpu.read(sum, 1), Ok(vec![wanted]))
}

pub(super) fn pools_of_the_programs_own(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    // type, handle types, location: a device, number 0; the rest zero
    let mut properties = [0_u32; 24];
    (properties[0], properties[2]) = (1, 1);
    let mut pool = 0;
    same("create", driver.cuMemPoolCreate(&raw mut pool, properties.as_ptr().cast()), 0)?;
    let mut a = 0;
    same("allocate", driver.cuMemAllocFromPoolAsync(&raw mut a, SIZE, pool, stream), 0)?;
    gpu.launch(stream, "acb_fill", &[a, 100, 8]).map_err(why("launch"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("used", attribute(&gpu, pool, USED)?, SIZE as u64)?;
    same("its words", gpu.read(a, 100).map(|words| words[99]), Ok(super::splitmix64(8 + 99)))?;
    let (mut flags, mut here) = (0, [1_u32, 0]);
    let asked = driver.cuMemPoolGetAccess(&raw mut flags, pool, here.as_mut_ptr().cast());
    same("its device reads and writes", (asked, flags), (0, 3))?;
    let shut_out = [1_u32, 0, 0];
    let refused = driver.cuMemPoolSetAccess(pool, shut_out.as_ptr().cast(), 1);
    any_of("and is not shut out", Err(refused), &[code::INVALID_VALUE, 101])?;
    // Not made for it, so it is not exported.
    let mut file = -1_i32;
    let to = (&raw mut file).cast();
    let exported = driver.cuMemPoolExportToShareableHandle(to, pool, 1, 0);
    any_of("export", Err(exported), &[code::INVALID_VALUE, 801])?;
    same("free", driver.cuMemFreeAsync(a, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("destroy", driver.cuMemPoolDestroy(pool), 0)?;
    let kept = driver.cuMemPoolDestroy(default_pool(&gpu)?);
    any_of("the device's own stays", Err(kept), &[code::INVALID_VALUE, 800])
}

pub(super) fn only_plain_memory_is_shared(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let mut handle = [0_u64; 8];
    let a = gpu.alloc(4 << 20).map_err(why("allocate"))?;
    let share = |handle: &mut [u64; 8], pointer| {
        check(gpu.driver.cuIpcGetMemHandle(handle.as_mut_ptr().cast(), pointer))
    };
    same("plain memory", share(&mut handle, a), Ok(()))?;
    same("something", handle.iter().any(|&word| word != 0), true)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let range = gpu.reserve(unit).map_err(why("reserve"))?;
    let memory = gpu.create(unit).map_err(why("create"))?;
    gpu.map(range, unit, memory).map_err(why("map"))?;
    gpu.open_up(range, unit).map_err(why("access"))?;
    any_of("mapped memory", share(&mut handle, range), &[code::INVALID_VALUE])
}

pub(super) fn another_process_opens_it(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let a = gpu.alloc(4 << 20).map_err(why("allocate"))?;
    gpu.launch(0, "acb_fill", &[a, 1000, 5]).map_err(why("launch"))?;
    let mut handle = [0_u64; 8];
    let shared = gpu.driver.cuIpcGetMemHandle(handle.as_mut_ptr().cast(), a);
    same("share", shared, 0)?;
    gpu.synchronize().map_err(why("synchronize"))?;
    // It reads the last word, and fills all with another seed.
    let words = handle.map(|word| word.to_string());
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = std::process::Command::new(exe)
        .arg("--driver")
        .arg(path)
        .args(["--act", "open-shared"])
        .args(words)
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    same("it read", said, super::splitmix64(5 + 999).to_string())?;
    let words = gpu.read(a, 1000).map_err(why("read"))?;
    same("and wrote", (words[0], words[999]), (super::splitmix64(6), super::splitmix64(6 + 999)))
}
