//! Questions about devices.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_char, c_int, c_uint};

use acb_cuda_abi::sys;
use simcuda_device::identity;

use super::{put, text};
use crate::code::{INVALID_DEVICE, INVALID_VALUE, Outcome};
use crate::driver;

calls! {
    fn cuDeviceGetCount(count: *mut c_int) {
        put(count, driver::get()?.devices.len() as c_int)
    }

    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        driver::get()?.gpu(ordinal)?;
        put(device, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, length: c_int, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        put_text(name, length, &driver.device(dev as usize)?.name)
    }

    fn cuDeviceGetUuid(uuid: *mut sys::CUuuid, dev: c_int) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        let bytes = identity::Uuid::of(&driver.config.state, gpu).0;
        put(uuid, sys::CUuuid { bytes: bytes.map(|byte| byte as c_char) })
    }

    fn cuDeviceGetUuid_v2(uuid: *mut sys::CUuuid, dev: c_int) {
        cuDeviceGetUuid(uuid, dev)
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        put(bytes, driver.device(dev as usize)?.memory as usize)
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, dev: c_int) {
        driver::get()?.gpu(dev)?;
        put(major, 9)?;
        put(minor, 0)
    }

    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, dev: c_int) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        put(value, attribute_of(attribute, gpu)?)
    }

    fn cuDeviceGetProperties(properties: *mut sys::CUdevprop, dev: c_int) {
        driver::get()?.gpu(dev)?;
        put(properties, sys::CUdevprop {
            maxThreadsPerBlock: 1024,
            maxThreadsDim: [1024, 1024, 64],
            maxGridSize: [i32::MAX, 65535, 65535],
            sharedMemPerBlock: 48 << 10,
            totalConstantMemory: 64 << 10,
            SIMDWidth: 32,
            memPitch: i32::MAX,
            regsPerBlock: 65536,
            clockRate: 1_500_000,
            textureAlign: 512,
        })
    }

    fn cuDeviceGetPCIBusId(id: *mut c_char, length: c_int, dev: c_int) {
        let gpu = driver::get()?.gpu(dev)?;
        put_text(id, length, &pci_bus_id(gpu))
    }

    fn cuDeviceGetByPCIBusId(dev: *mut c_int, id: *const c_char) {
        let driver = driver::get()?;
        let wanted = text(id)?.to_ascii_lowercase();
        let fits = |&gpu: &usize| {
            let own = pci_bus_id(gpu);
            own == wanted || own["0000:".len()..] == wanted || format!("0000{own}") == wanted
        };
        let ordinal = driver.devices.iter().position(fits).ok_or(INVALID_DEVICE)?;
        put(dev, ordinal as c_int)
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, dev: c_int, peer: c_int) {
        let driver = driver::get()?;
        let others = driver.gpu(dev)? != driver.gpu(peer)?;
        put(can, c_int::from(others && driver.config.peers))
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, attribute: c_uint, from: c_int, to: c_int) {
        let driver = driver::get()?;
        let (from, to) = (driver.gpu(from)?, driver.gpu(to)?);
        if from == to {
            return Err(INVALID_DEVICE);
        }
        match attribute {
            // performance rank, access, native atomics, array access
            1 | 3 | 4 => put(value, 0),
            2 => put(value, 1),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuDeviceGetExecAffinitySupport(value: *mut c_int, _kind: c_uint, dev: c_int) {
        driver::get()?.gpu(dev)?;
        put(value, 0)
    }

    fn cuDeviceGetTexture1DLinearMaxWidth(
        width: *mut usize,
        _format: c_uint,
        _channels: c_uint,
        dev: c_int,
    ) {
        driver::get()?.gpu(dev)?;
        put(width, 1 << 27)
    }
}

fn pci_bus_id(gpu: usize) -> String {
    format!("0000:{:02x}:00.0", identity::pci_bus(gpu))
}

/// # Safety
/// `to` is null or has room for `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_int, text: &str) -> Outcome {
    let length = usize::try_from(length).map_err(|_| INVALID_VALUE)?;
    if to.is_null() || length == 0 {
        return Err(INVALID_VALUE);
    }
    let count = text.len().min(length - 1);
    // SAFETY: `count` and the byte after it lie inside `length`.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, count);
        to.add(count).write(0);
    }
    Ok(())
}

/// The attributes of a GPU of compute capability 9.0; what it cannot do here (no
/// managed memory that moves) it says it cannot.
pub(super) fn attribute_of(attribute: c_uint, gpu: usize) -> Outcome<c_int> {
    Ok(match attribute {
        // threads in a block; block dimensions; grid dimensions
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        // shared memory, constant memory, warp, pitch, registers, clock, alignment
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        11 => i32::MAX,
        12 => 65536,
        13 => 1_500_000,
        14 => 512,
        // overlap of copies; multiprocessors; no time limit; not integrated
        15 => 1,
        16 => 132,
        17 | 18 => 0,
        // host memory can be mapped; any number of contexts
        19 => 1,
        20 => 0,
        // sizes of textures and layers
        21..=30 => 16384,
        // concurrent kernels; no ECC; PCI bus, device; no TCC
        31 => 1,
        32 => 0,
        33 => identity::pci_bus(gpu) as c_int,
        34 | 35 => 0,
        // memory clock, bus width, L2, threads in a multiprocessor
        36 => 2_600_000,
        37 => 5120,
        38 => 50 << 20,
        39 => 2048,
        // copy engines; unified addressing
        40 => 2,
        41 => 1,
        42..=49 => 16384,
        50 => 0,
        51..=74 => 16384,
        // compute capability
        75 => 9,
        76 => 0,
        77 => 16384,
        // priorities; L1 caches; shared memory and registers of a multiprocessor
        78..=80 => 1,
        81 => 228 << 10,
        82 => 65536,
        // managed memory; not a board of several; its number; native atomics to the host
        83 => 1,
        84 => 0,
        85 => gpu as c_int,
        86 => 0,
        // single to double performance; pageable memory; concurrent managed access
        87 => 2,
        88 | 89 => 0,
        // compute preemption; host pointers for registered memory
        90 | 91 => 1,
        // stream memory operations, old and new
        92..=94 => 0,
        // cooperative launch, on one device and several
        95 => 1,
        96 => 0,
        // shared memory of a block, opted in
        97 => 227 << 10,
        98..=101 => 0,
        // virtual memory management; handles as descriptors, Windows's none
        102 => 1,
        103 => 1,
        104 | 105 => 0,
        // blocks in a multiprocessor; compression; persisting L2; window
        106 => 32,
        107 => 1,
        108 => 30 << 20,
        109 => 128 << 20,
        // GPUDirect RDMA with virtual memory; reserved shared memory
        110 => 0,
        111 => 1 << 10,
        // sparse arrays; read-only host registration; timeline semaphores; pools
        112 => 1,
        113 | 114 => 0,
        115 => 1,
        // GPUDirect RDMA and what belongs to it
        116..=118 => 0,
        // pool handle types: descriptors; clusters; deferred mapping; 64-bit waits
        119 => 1,
        120 => 1,
        121..=123 => 0,
        // DMA-BUF; IPC events; memory sync domains; tensor maps; fabric handles
        124 => 1,
        125 => 1,
        126 => 0,
        127 | 128 => 1,
        // unified function pointers; NUMA; multicast; MPS; host NUMA
        129..=131 => 0,
        132 => 1,
        133 => 0,
        134 => -1,
        135..=155 => 0,
        _ => return Err(INVALID_VALUE),
    })
}
