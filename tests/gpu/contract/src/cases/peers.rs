//! Copies between two GPUs, while neither has peer access to the other enabled. On a machine with one GPU there is nothing to see.

use std::path::Path;

use super::{any_of, open, same, why};
use crate::driver::{Address, Handle};
use crate::gpu::{Answer, Gpu, check, code};

/// A driver with two GPUs, and their contexts; the first is current.
struct Two {
    gpu: Gpu,
    contexts: [Handle; 2],
}

/// `None`: there is one GPU.
fn two(path: &Path) -> Result<Option<Two>, String> {
    let gpu = open(path)?;
    let mut count = 0;
    same("count", gpu.driver.cuDeviceGetCount(&raw mut count), 0)?;
    if count < 2 {
        return Ok(None);
    }
    let mut other = 0;
    same("context", gpu.driver.cuDevicePrimaryCtxRetain(&raw mut other, 1), 0)?;
    let contexts = [gpu.context, other];
    Ok(Some(Two { gpu, contexts }))
}

impl Two {
    fn go(&self, device: usize) -> Result<(), String> {
        same("current", self.gpu.driver.cuCtxSetCurrent(self.contexts[device]), 0)
    }

    /// Whether the GPUs reach each other at all.
    fn can(&self) -> Result<bool, String> {
        let (mut there, mut back) = (0, 0);
        same("can", self.gpu.driver.cuDeviceCanAccessPeer(&raw mut there, 0, 1), 0)?;
        same("can", self.gpu.driver.cuDeviceCanAccessPeer(&raw mut back, 1, 0), 0)?;
        Ok(there != 0 && back != 0)
    }

    /// A plain allocation on each.
    fn allocate(&self, bytes: usize) -> Result<[Address; 2], String> {
        self.go(1)?;
        let second = self.gpu.alloc(bytes).map_err(why("allocate on 1"))?;
        self.go(0)?;
        Ok([self.gpu.alloc(bytes).map_err(why("allocate on 0"))?, second])
    }

    /// Mapped memory on a device, open to that alone.
    fn map(&self, device: u32) -> Result<(Address, usize), String> {
        let unit = self.gpu.granularity().map_err(why("granularity"))?;
        let range = self.gpu.reserve(unit).map_err(why("reserve"))?;
        let memory = self.gpu.create_on(unit, device).map_err(why("create"))?;
        self.gpu.map(range, unit, memory).map_err(why("map"))?;
        self.gpu.open_to(range, unit, device).map_err(why("access"))?;
        Ok((range, unit))
    }

    /// A copy, and what it leaves at its end.
    fn copied(&self, to: Address, from: Address, call: impl Fn() -> Answer) -> Result<(), String> {
        let words = [from, to, 4711];
        let nothing = [0; 3];
        let device = |address| -> Result<usize, String> {
            let mut device = 0_i32;
            let place = (&raw mut device).cast();
            // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
            same("where", self.gpu.driver.cuPointerGetAttribute(place, 9, address), 0)?;
            Ok(device as usize)
        };
        let (at, before) = (device(to)?, device(from)?);
        self.go(before)?;
        self.gpu.write(from, &words).map_err(why("write"))?;
        self.go(at)?;
        self.gpu.write(to, &nothing).map_err(why("clear"))?;
        self.go(0)?;
        call().map_err(why("copy"))?;
        self.gpu.synchronize().map_err(why("synchronize"))?;
        self.go(at)?;
        same("data", self.gpu.read(to, 3).map_err(why("read"))?, words.to_vec())?;
        self.go(0)
    }
}

const BYTES: usize = 24;

/// The calls that copy within unified addressing, in the current context.
const WAYS: [&str; 5] = ["DtoD", "unified", "DtoDAsync", "unified, async", "2D"];

fn copy(two: &Two, way: &str, to: Address, from: Address) -> Answer {
    let driver = &two.gpu.driver;
    // CUDA_MEMCPY2D: two sides of seven words, kinds, addresses and rows in them, then width and height.
    let side = |at: u64| [0, 0, 2, 0, at, 0, BYTES as u64];
    let flat: Vec<u64> = side(from).into_iter().chain(side(to)).chain([BYTES as u64, 1]).collect();
    check(match way {
        "DtoD" => driver.cuMemcpyDtoD_v2(to, from, BYTES),
        "unified" => driver.cuMemcpy(to, from, BYTES),
        "DtoDAsync" => driver.cuMemcpyDtoDAsync_v2(to, from, BYTES, 0),
        "2D" => driver.cuMemcpy2D_v2(flat.as_ptr().cast()),
        _ => driver.cuMemcpyAsync(to, from, BYTES, 0),
    })
}

/// Whatever device is current, and whether or not the GPUs reach each other.
pub(super) fn plain_memory_is_copied_without_access(path: &Path) -> Result<(), String> {
    let Some(two) = two(path)? else { return Ok(()) };
    let [a, b] = two.allocate(4 << 20)?;
    for (to, from) in [(a, b), (b, a)] {
        for way in WAYS {
            two.copied(to, from, || copy(&two, way, to, from))
                .map_err(|why| format!("{way}: {why}"))?;
        }
    }
    // Also between the host and a device that is not current.
    two.gpu.write(b, &[1, 2, 3]).map_err(why("write to the other"))?;
    same("read", two.gpu.read(b, 3).map_err(why("read from the other"))?, vec![1, 2, 3])
}

/// Mapped memory that is open to its own GPU alone takes a call that names both contexts.
pub(super) fn mapped_memory_is_copied_between_contexts_alone(path: &Path) -> Result<(), String> {
    let Some(two) = two(path)? else { return Ok(()) };
    let ((a, _), (b, _)) = (two.map(0)?, two.map(1)?);
    for way in WAYS {
        any_of(way, copy(&two, way, b, a), &[code::INVALID_VALUE])?;
    }
    any_of("from the host", two.gpu.write(b, &[1]), &[code::INVALID_VALUE])?;
    let [first, second] = two.contexts;
    let driver = &two.gpu.driver;
    two.copied(b, a, || check(driver.cuMemcpyPeer(b, second, a, first, BYTES)))?;
    two.copied(a, b, || check(driver.cuMemcpyPeerAsync(a, first, b, second, BYTES, 0)))
}

/// Once it is open to both, it is copied as plain memory is.
pub(super) fn mapped_memory_that_is_open_is_copied(path: &Path) -> Result<(), String> {
    let Some(two) = two(path)? else { return Ok(()) };
    let ((a, bytes), (b, _)) = (two.map(0)?, two.map(1)?);
    if !two.can()? {
        let refused = [code::INVALID_VALUE, 101, 217, 801];
        return any_of("open", two.gpu.open_to(b, bytes, 0), &refused);
    }
    two.gpu.open_to(b, bytes, 0).map_err(why("open"))?;
    for (to, from) in [(a, b), (b, a)] {
        for way in WAYS {
            two.copied(to, from, || copy(&two, way, to, from))
                .map_err(|why| format!("{way}: {why}"))?;
        }
    }
    Ok(())
}
