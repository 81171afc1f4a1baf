//! The program's own virtual memory management.

use std::path::Path;

use super::{any_of, open, same, why};
use crate::gpu::code;

pub(super) fn mapped_memory_is_used(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let range = gpu.reserve(4 * unit).map_err(why("reserve"))?;
    for at in 0..2 {
        let handle = gpu.create(unit).map_err(why("create"))?;
        gpu.map(range + (at * unit) as u64, unit, handle).map_err(why("map"))?;
        same("the mapping keeps it", gpu.driver.cuMemRelease(handle), 0)?;
    }
    gpu.open_up(range, 2 * unit).map_err(why("access"))?;
    // Across the border between the two.
    let start = range + unit as u64 - 400;
    gpu.launch(0, "acb_fill", &[start, 100, 1]).map_err(why("launch"))?;
    let words = gpu.read(start, 100).map_err(why("read"))?;
    same("one range", words[99], super::splitmix64(1 + 99))?;
    any_of("beyond what is mapped", gpu.read(range, unit / 2).map(drop), &[code::INVALID_VALUE])?;
    gpu.unmap(range, 2 * unit).map_err(why("unmap"))?;
    same("free", gpu.driver.cuMemAddressFree(range, 4 * unit), 0)
}

pub(super) fn without_access_it_is_not(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let range = gpu.reserve(unit).map_err(why("reserve"))?;
    let refused = [code::INVALID_VALUE, code::INVALID_HANDLE];
    any_of("nothing mapped", gpu.write(range, &[1]), &refused)?;
    let handle = gpu.create(unit).map_err(why("create"))?;
    gpu.map(range, unit, handle).map_err(why("map"))?;
    any_of("no access", gpu.write(range, &[1]), &refused)?;
    gpu.open_up(range, unit).map_err(why("access"))?;
    gpu.write(range, &[1]).map_err(why("write"))
}

pub(super) fn data_moves_with_its_handle(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let range = gpu.reserve(2 * unit).map_err(why("reserve"))?;
    let handle = gpu.create(unit).map_err(why("create"))?;
    gpu.map(range, unit, handle).map_err(why("map"))?;
    gpu.open_up(range, unit).map_err(why("access"))?;
    gpu.write(range, &[4711]).map_err(why("write"))?;
    gpu.unmap(range, unit).map_err(why("unmap"))?;
    let other = range + unit as u64;
    gpu.map(other, unit, handle).map_err(why("map elsewhere"))?;
    gpu.open_up(other, unit).map_err(why("access"))?;
    same("data", gpu.read(other, 1).map_err(why("read"))?, vec![4711])
}

pub(super) fn sizes_are_checked(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    same("a power of two", unit.is_power_of_two(), true)?;
    same("a crooked size", gpu.create(unit + 1), Err(code::INVALID_VALUE))?;
    same("no size", gpu.create(0), Err(code::INVALID_VALUE))?;
    let handle = gpu.create(unit).map_err(why("create"))?;
    let range = gpu.reserve(2 * unit).map_err(why("reserve"))?;
    any_of("larger than the memory", gpu.map(range, 2 * unit, handle), &[code::INVALID_VALUE])?;
    gpu.map(range, unit, handle).map_err(why("map"))?;
    any_of("over another", gpu.map(range, unit, handle), &[code::INVALID_VALUE])?;
    let (_, total) = gpu.memory().map_err(why("memory"))?;
    let huge = (total + (1 << 30)).next_multiple_of(unit);
    same("too much", gpu.create(huge), Err(code::OUT_OF_MEMORY))
}

/// A description of a tensor may be made while its memory is elsewhere. What a driver answers depends on the GPU, but not on that.
pub(super) fn tensors_are_described_where_nothing_is_mapped(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let range = gpu.reserve(2 * unit).map_err(why("reserve"))?;
    let handle = gpu.create(unit).map_err(why("create"))?;
    gpu.map(range, unit, handle).map_err(why("map"))?;
    gpu.open_up(range, unit).map_err(why("access"))?;
    let [mapped, reserved] = [range, range + unit as u64].map(|at| gpu.driver.tensor_map(at));
    same("as of mapped memory", reserved, mapped)
}

/// Objects, mappings and reservations are taken as a whole.
pub(super) fn mappings_are_whole(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let handle = gpu.create(2 * unit).map_err(why("create"))?;
    let range = gpu.reserve(4 * unit).map_err(why("reserve"))?;
    let at = |parts: usize| range + (parts * unit) as u64;
    let refused = |what, answer| any_of(what, answer, &[code::INVALID_VALUE]);
    let checked = |result| crate::gpu::check(result);
    refused("a crooked size", gpu.map(at(0), unit / 2, handle))?;
    refused("a crooked address", gpu.map(at(0) + unit as u64 / 2, unit, handle))?;
    refused("an offset", checked(gpu.driver.cuMemMap(at(0), unit, unit, handle, 0)))?;
    refused("beyond the object", gpu.map(at(0), 3 * unit, handle))?;
    refused("across the end", gpu.map(at(3), 2 * unit, handle))?;
    refused("not reserved", gpu.map(at(4), 2 * unit, handle))?;
    gpu.map(at(0), 2 * unit, handle).map_err(why("map"))?;
    refused("over another", gpu.map(at(1), 2 * unit, handle))?;
    refused("access to the first half", gpu.open_up(at(0), unit))?;
    refused("access to the second half", gpu.open_up(at(1), unit))?;
    refused("access beyond", gpu.open_up(at(0), 4 * unit))?;
    refused("unmap the first half", gpu.unmap(at(0), unit))?;
    refused("unmap the second half", gpu.unmap(at(1), unit))?;
    refused("unmap more", gpu.unmap(at(0), 4 * unit))?;
    refused("free while mapped", checked(gpu.driver.cuMemAddressFree(range, 4 * unit)))?;
    gpu.open_up(at(0), 2 * unit).map_err(why("access"))?;
    gpu.unmap(at(0), 2 * unit).map_err(why("unmap"))?;
    refused("free a half", checked(gpu.driver.cuMemAddressFree(range, 2 * unit)))?;
    same("free", gpu.driver.cuMemAddressFree(range, 4 * unit), 0)?;
    refused("map nowhere", gpu.map(at(0), 2 * unit, handle))
}

pub(super) fn ranges_in_use_are_kept(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let (before, _) = gpu.memory().map_err(why("memory"))?;
    let range = gpu.reserve(unit).map_err(why("reserve"))?;
    let handle = gpu.create(unit).map_err(why("create"))?;
    gpu.map(range, unit, handle).map_err(why("map"))?;
    any_of(
        "free while mapped",
        Err(gpu.driver.cuMemAddressFree(range, unit)),
        &[code::INVALID_VALUE],
    )?;
    same("release", gpu.driver.cuMemRelease(handle), 0)?;
    let (during, _) = gpu.memory().map_err(why("memory"))?;
    same("still taken", before - during >= unit, true)?;
    gpu.unmap(range, unit).map_err(why("unmap"))?;
    let (after, _) = gpu.memory().map_err(why("memory"))?;
    same("given back", after, before)?;
    same("free", gpu.driver.cuMemAddressFree(range, unit), 0)
}

pub(super) fn exported_memory_is_the_same_memory(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let plain = gpu.create(unit).map_err(why("create"))?;
    // As a file descriptor.
    let export = |handle: u64, to: &mut i32| {
        let to = std::ptr::from_mut(to).cast();
        crate::gpu::check(gpu.driver.cuMemExportToShareableHandle(to, handle, 1, 0))
    };
    let mut number = -1;
    any_of("made without a type", export(plain, &mut number), &[code::INVALID_VALUE])?;
    let handle = gpu.create_shareable(unit).map_err(why("create"))?;
    export(handle, &mut number).map_err(why("export"))?;
    let mut imported = 0;
    let from = std::ptr::without_provenance_mut(number as usize);
    let result = gpu.driver.cuMemImportFromShareableHandle(&raw mut imported, from, 1);
    same("import", result, 0)?;
    let range = gpu.reserve(2 * unit).map_err(why("reserve"))?;
    gpu.map(range, unit, handle).map_err(why("map"))?;
    gpu.map(range + unit as u64, unit, imported).map_err(why("map the import"))?;
    gpu.open_up(range, 2 * unit).map_err(why("access"))?;
    gpu.write(range, &[4711]).map_err(why("write"))?;
    same("data", gpu.read(range + unit as u64, 1).map_err(why("read"))?, vec![4711])?;
    same("release", gpu.driver.cuMemRelease(handle), 0)?;
    same("release the import", gpu.driver.cuMemRelease(imported), 0)
}

/// Larger than what programs beside it leave free, and filled before anybody is told of it.
pub(super) fn memory_is_exported_with_its_content(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let unit = gpu.granularity().map_err(why("granularity"))?;
    let bytes = (64usize << 20).next_multiple_of(unit);
    let handle = gpu.create_shareable(bytes).map_err(why("create"))?;
    let range = gpu.reserve(2 * bytes).map_err(why("reserve"))?;
    gpu.map(range, bytes, handle).map_err(why("map"))?;
    gpu.open_up(range, bytes).map_err(why("access"))?;
    let last = bytes as u64 - 8;
    gpu.write(range, &[4711]).map_err(why("write the first"))?;
    gpu.write(range + last, &[4712]).map_err(why("write the last"))?;
    let mut number = -1;
    let to = std::ptr::from_mut(&mut number).cast();
    same("export", gpu.driver.cuMemExportToShareableHandle(to, handle, 1, 0), 0)?;
    let mut imported = 0;
    let from = std::ptr::without_provenance_mut(number as usize);
    let result = gpu.driver.cuMemImportFromShareableHandle(&raw mut imported, from, 1);
    same("import", result, 0)?;
    let second = range + bytes as u64;
    gpu.map(second, bytes, imported).map_err(why("map the import"))?;
    gpu.open_up(second, bytes).map_err(why("access to the import"))?;
    same("first", gpu.read(second, 1).map_err(why("read the first"))?, vec![4711])?;
    same("last", gpu.read(second + last, 1).map_err(why("read the last"))?, vec![4712])?;
    gpu.write(second, &[4713]).map_err(why("write the import"))?;
    same("as one", gpu.read(range, 1).map_err(why("read"))?, vec![4713])?;
    same("release", gpu.driver.cuMemRelease(handle), 0)?;
    same("release the import", gpu.driver.cuMemRelease(imported), 0)
}
