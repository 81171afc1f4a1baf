//! Modules, kernels and launches.

use std::ffi::c_void;
use std::path::Path;

use acb_cuda_abi::hash;

use super::{any_of, open, same, why};
use crate::gpu::{KERNELS, code};

pub(super) fn kernels_do_their_work(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let count = 5000_u64;
    let a = gpu.alloc(count as usize * 8).map_err(why("allocate"))?;
    let sum = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(sum, &[1]).map_err(why("write"))?;
    gpu.launch(0, "acb_nop", &[]).map_err(why("nop"))?;
    gpu.launch(0, "acb_fill", &[a, count, 11]).map_err(why("fill"))?;
    gpu.launch(0, "acb_step", &[a, count, 13, 1000]).map_err(why("step"))?;
    gpu.launch(0, "acb_sum", &[a, count, sum]).map_err(why("sum"))?;
    let step = |at: u64| {
        super::splitmix64(11 + at).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(13)
    };
    let wanted: Vec<u64> = (0..count).map(step).collect();
    let total = wanted.iter().fold(1_u64, |sum, &word| sum.wrapping_add(word));
    same("words", gpu.read(a, count as usize).map_err(why("read"))? == wanted, true)?;
    same("sum", gpu.read(sum, 1).map_err(why("read"))?, vec![total])
}

pub(super) fn kernels_are_found(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    same("missing", gpu.function("acb_missing"), Err(code::NOT_FOUND))?;
    gpu.function("acb_fill").map_err(why("there"))?;
    same("unload", gpu.driver.cuModuleUnload(gpu.module), 0)
}

pub(super) fn images_are_checked(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let load = |image: &str| {
        let mut module = 0;
        match gpu.driver.cuModuleLoadData(&raw mut module, image.as_ptr().cast()) {
            0 => Ok(()),
            code => Err(code),
        }
    };
    let wrong = [code::INVALID_IMAGE, code::INVALID_PTX];
    any_of("no image", load("this is no image\0"), &wrong)?;
    // In the middle of a kernel.
    let middle = KERNELS.find("SPIN:").ok_or("the kernels have changed")?;
    let cut = format!("{}\0", &KERNELS[..middle]);
    any_of("half an image", load(&cut), &wrong)?;
    let mut module = 0;
    let none = gpu.driver.cuModuleLoadData(&raw mut module, std::ptr::null());
    same("none", none, code::INVALID_VALUE)
}

pub(super) fn shapes_are_checked(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let nop = gpu.function("acb_nop").map_err(why("function"))?;
    let launch = |shape| gpu.launch_shaped(nop, 0, shape, &[]);
    same("no blocks", launch([0, 1, 1, 32, 1, 1]), Err(code::INVALID_VALUE))?;
    same("no threads", launch([1, 1, 1, 0, 1, 1]), Err(code::INVALID_VALUE))?;
    same("too many threads", launch([1, 1, 1, 1025, 1, 1]), Err(code::INVALID_VALUE))?;
    same("too many rows", launch([1, 65536, 1, 32, 1, 1]), Err(code::INVALID_VALUE))?;
    launch([1, 1, 1, 1024, 1, 1]).map_err(why("a full block"))?;
    gpu.synchronize().map_err(why("nothing is broken"))
}

pub(super) fn arguments_in_a_buffer(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let fill = gpu.function("acb_fill").map_err(why("function"))?;
    let a = gpu.alloc(800).map_err(why("allocate"))?;
    let mut buffer = [a, 100, 21];
    let mut size = size_of_val(&buffer);
    let mut extra: [*mut c_void; 5] = [
        std::ptr::without_provenance_mut(1),
        buffer.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(2),
        (&raw mut size).cast(),
        std::ptr::null_mut(),
    ];
    let none = std::ptr::null_mut();
    let extra = extra.as_mut_ptr();
    let launched = gpu.driver.cuLaunchKernel(fill, 1, 1, 1, 32, 1, 1, 0, 0, none, extra);
    same("launch", launched, 0)?;
    let words = gpu.read(a, 100).map_err(why("read"))?;
    same("last word", words[99], super::splitmix64(21 + 99))
}

pub(super) fn a_bad_address_breaks_the_context(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    gpu.launch(0, "acb_fill", &[0x10, 100, 1]).map_err(why("the launch itself"))?;
    let bad = [code::ILLEGAL_ADDRESS, code::MISALIGNED_ADDRESS];
    any_of("synchronize", gpu.synchronize(), &bad)?;
    any_of("it stays", gpu.alloc(64).map(drop), &bad)?;
    any_of("for all calls", gpu.synchronize(), &bad)
}

pub(super) fn libraries_have_kernels(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    if !gpu.driver.exports("cuLibraryLoadData") {
        return Ok(());
    }
    let mut library = 0;
    let image = KERNELS.as_ptr().cast();
    let loaded = gpu.driver.cuLibraryLoadData(&raw mut library, image, 0, 0, 0, 0, 0, 0);
    same("load", loaded, 0)?;
    let mut kernel = 0;
    let found = gpu.driver.cuLibraryGetKernel(&raw mut kernel, library, c"acb_fill".as_ptr());
    same("find", found, 0)?;
    let missing = gpu.driver.cuLibraryGetKernel(&raw mut kernel, library, c"none".as_ptr());
    same("missing", missing, code::NOT_FOUND)?;
    let found = gpu.driver.cuLibraryGetKernel(&raw mut kernel, library, c"acb_fill".as_ptr());
    same("find again", found, 0)?;
    let a = gpu.alloc(800).map_err(why("allocate"))?;
    // A kernel may be launched as it is: the current context's function is meant.
    gpu.launch_shaped(kernel, 0, [1, 1, 1, 64, 1, 1], &[a, 100, 3]).map_err(why("launch"))?;
    let words = gpu.read(a, 100).map_err(why("read"))?;
    same("last word", words[99], super::splitmix64(3 + 99))
}

pub(super) fn chunks_are_hashed(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let (mut module, mut kernel) = (0, 0);
    let loaded = gpu.driver.cuModuleLoadData(&raw mut module, hash::PTX.as_ptr().cast());
    same("load", loaded, 0)?;
    let name = std::ffi::CString::new(hash::KERNEL).map_err(|error| error.to_string())?;
    let found = gpu.driver.cuModuleGetFunction(&raw mut kernel, module, name.as_ptr());
    same("find", found, 0)?;
    let (chunks, pairs, seed) = (3_u64, 1000_u64, 77);
    let words: Vec<u64> = (0..chunks * pairs * 2).map(super::splitmix64).collect();
    let data = gpu.alloc(words.len() * 8).map_err(why("allocate"))?;
    let out = gpu.alloc(48).map_err(why("allocate"))?;
    gpu.write(data, &words).map_err(why("write"))?;
    gpu.write(out, &[5; 6]).map_err(why("write"))?;
    let shape = [4, chunks as u32, 1, hash::THREADS, 1, 1];
    gpu.launch_shaped(kernel, 0, shape, &[data, pairs, seed, out]).map_err(why("launch"))?;
    // To what was there it adds.
    let wanted: Vec<u64> = words
        .chunks(pairs as usize * 2)
        .flat_map(|chunk| hash::hash128(chunk, 0, seed).plus(hash::Hash128([5, 5])).0)
        .collect();
    same("hashes", gpu.read(out, 6), Ok(wanted))
}

const PTX: u32 = 1;

pub(super) fn texts_are_linked(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let none = std::ptr::null_mut();
    let mut state = 0;
    same("create", driver.cuLinkCreate_v2(0, none, none.cast(), &raw mut state), 0)?;
    let add = |text: &str| {
        let (data, name) = (text.as_ptr().cast(), c"kernels".as_ptr());
        driver.cuLinkAddData_v2(state, PTX, data, text.len(), name, 0, none, none.cast())
    };
    same("add", add(KERNELS), 0)?;
    same("add another", add(hash::PTX), 0)?;
    let (mut image, mut size) = (std::ptr::null_mut(), 0);
    same("complete", driver.cuLinkComplete(state, &raw mut image, &raw mut size), 0)?;
    same("an image", !image.is_null() && size > 0, true)?;
    let (mut module, mut kernel) = (0, 0);
    same("load", driver.cuModuleLoadData(&raw mut module, image), 0)?;
    let mut library = 0;
    let loaded = driver.cuLibraryLoadData(&raw mut library, image, 0, 0, 0, 0, 0, 0);
    same("load as a library", loaded, 0)?;
    same("destroy", driver.cuLinkDestroy(state), 0)?;
    for name in [c"acb_hash128", c"acb_fill"] {
        same("find", driver.cuModuleGetFunction(&raw mut kernel, module, name.as_ptr()), 0)?;
    }
    let a = gpu.alloc(800).map_err(why("allocate"))?;
    gpu.launch_shaped(kernel, 0, [1, 1, 1, 64, 1, 1], &[a, 100, 3]).map_err(why("launch"))?;
    let words = gpu.read(a, 100).map_err(why("read"))?;
    same("last word", words[99], super::splitmix64(3 + 99))
}

pub(super) fn compilers_say_what_is_wrong(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let mut log = [0x55_u8; 512];
    // The buffer for errors, and its size, which becomes the length of what was said.
    let mut options = [5, 6];
    let mut values = [log.as_mut_ptr() as usize, log.len()];
    let (options, places) = (options.as_mut_ptr(), values.as_mut_ptr());
    let said = |log: &[u8]| log.iter().position(|&byte| byte == 0);
    let middle = KERNELS.find("SPIN:").ok_or("the kernels have changed")?;
    let cut = format!("{}\0", &KERNELS[..middle]);
    let mut module = 0;
    let text = cut.as_ptr().cast();
    let loaded = driver.cuModuleLoadDataEx(&raw mut module, text, 2, options, places);
    any_of("half an image", Err(loaded), &[code::INVALID_PTX, code::INVALID_IMAGE])?;
    same("something", said(&log).is_some_and(|length| length > 0), true)?;
    let mut state = 0;
    values[1] = log.len();
    same("create", driver.cuLinkCreate_v2(2, options, values.as_mut_ptr(), &raw mut state), 0)?;
    let none = std::ptr::null_mut();
    let (name, size) = (c"half".as_ptr(), cut.len());
    let added =
        driver.cuLinkAddData_v2(state, PTX, cut.as_ptr().cast(), size, name, 0, none, none.cast());
    any_of("half a text", Err(added), &[code::INVALID_PTX, code::INVALID_IMAGE, code::NO_BINARY])?;
    let nowhere = c"/nowhere/at/all.ptx".as_ptr();
    let added = driver.cuLinkAddFile_v2(state, PTX, nowhere, 0, none, none.cast());
    any_of("no file", Err(added), &[code::FILE_NOT_FOUND, code::INVALID_VALUE])?;
    same("destroy", driver.cuLinkDestroy(state), 0)
}

pub(super) fn an_endless_kernel_ends_by_its_flag(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let kernels = gpu.stream(1).map_err(why("stream"))?;
    let copies = gpu.stream(1).map_err(why("stream"))?;
    let flag = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(flag, &[0]).map_err(why("write"))?;
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    pinned.set(0, 1);
    let endless = gpu.function("acb_endless").map_err(why("function"))?;
    gpu.launch_shaped(endless, kernels, [1, 1, 1, 1, 1, 1], &[flag]).map_err(why("launch"))?;
    same("it runs", gpu.query(kernels), Err(code::NOT_READY))?;
    same("copy", gpu.driver.cuMemcpyHtoDAsync_v2(flag, pinned.pointer(), 8, copies), 0)?;
    gpu.wait(copies).map_err(why("wait"))?;
    gpu.wait(kernels).map_err(why("it ends"))
}
