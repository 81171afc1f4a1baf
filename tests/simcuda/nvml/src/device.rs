//! What is asked about one GPU.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use simcuda_device::engine::EngineId;
use simcuda_device::identity::{Uuid, pci_bus};
use simcuda_device::layout::EngineKind;
use simcuda_device::state::Usage;

use crate::{
    ARGUMENT_VERSION_MISMATCH, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED,
    Outcome, Session, exports, put, put_text, session,
};

/// A handle is the GPU's index plus one.
pub(crate) type Handle = *mut c_void;

#[repr(C)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
pub(crate) struct MemoryV2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
pub(crate) struct Pci {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

#[repr(C)]
pub(crate) struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
pub(crate) struct OldProcessInfo {
    pid: c_uint,
    memory: u64,
}

#[repr(C)]
pub(crate) struct ProcessInfo {
    pid: c_uint,
    memory: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

exports! {
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: *mut Handle) {
        if index as usize >= session()?.config.gpus.len() {
            return Err(INVALID_ARGUMENT);
        }
        put(handle, (index as usize + 1) as Handle)
    }

    fn nvmlDeviceGetHandleByIndex(index: c_uint, handle: *mut Handle) {
        if index as usize >= session()?.config.gpus.len() {
            return Err(INVALID_ARGUMENT);
        }
        put(handle, (index as usize + 1) as Handle)
    }

    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, handle: *mut Handle) {
        let wanted = text(uuid)?;
        let uuids = session()?.config.uuids();
        let index = uuids.iter().position(|own| own.to_string() == wanted).ok_or(NOT_FOUND)?;
        put(handle, (index + 1) as Handle)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, handle: *mut Handle) {
        let wanted = text(id)?.to_ascii_lowercase();
        let count = session()?.config.gpus.len();
        let fits = |&index: &usize| {
            let own = bus_id(pci_bus(index));
            wanted == own || wanted == own[4..]
        };
        let index = (0..count).find(fits).ok_or(NOT_FOUND)?;
        put(handle, (index + 1) as Handle)
    }

    fn nvmlDeviceGetIndex(device: Handle, index: *mut c_uint) {
        put(index, of(device)?.1 as c_uint)
    }

    fn nvmlDeviceGetMinorNumber(device: Handle, minor: *mut c_uint) {
        put(minor, of(device)?.1 as c_uint)
    }

    fn nvmlDeviceGetName(device: Handle, name: *mut c_char, length: c_uint) {
        let (session, index) = of(device)?;
        put_text(name, length, &session.config.gpus[index].name)
    }

    fn nvmlDeviceGetUUID(device: Handle, uuid: *mut c_char, length: c_uint) {
        let (session, index) = of(device)?;
        put_text(uuid, length, &Uuid::of(&session.config.state, index).to_string())
    }

    fn nvmlDeviceGetMemoryInfo(device: Handle, memory: *mut Memory) {
        let (total, used) = memory_of(device)?;
        put(memory, Memory { total, free: total.saturating_sub(used), used })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, memory: *mut MemoryV2) {
        let (total, used) = memory_of(device)?;
        if memory.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let version = (&raw const (*memory).version).read();
        if version != size_of::<MemoryV2>() as c_uint | 2 << 24 {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let free = total.saturating_sub(used);
        let (session, index) = of(device)?;
        let reserved = session.config.gpus[index].reserved;
        put(memory, MemoryV2 { version, total, reserved, free, used: used - reserved })
    }

    fn nvmlDeviceGetPciInfo_v3(device: Handle, info: *mut Pci) {
        put(info, pci(pci_bus(of(device)?.1)))
    }

    fn nvmlDeviceGetPciInfo_v2(device: Handle, info: *mut Pci) {
        put(info, pci(pci_bus(of(device)?.1)))
    }

    fn nvmlDeviceGetUtilizationRates(device: Handle, rates: *mut Utilization) {
        let (session, index) = of(device)?;
        let id = EngineId { gpu: index, kind: EngineKind::Compute };
        let gpu = if session.state.busy(id) { 100 } else { 0 };
        put(rates, Utilization { gpu, memory: gpu })
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: Handle,
        count: *mut c_uint,
        infos: *mut ProcessInfo,
    ) {
        running(device, count, infos)
    }

    fn nvmlDeviceGetComputeRunningProcesses(
        device: Handle,
        count: *mut c_uint,
        infos: *mut OldProcessInfo,
    ) {
        running(device, count, infos)
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(
        device: Handle,
        count: *mut c_uint,
        infos: *mut ProcessInfo,
    ) {
        running(device, count, infos)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: Handle,
        count: *mut c_uint,
        _infos: *mut ProcessInfo,
    ) {
        of(device)?;
        put(count, 0)
    }

    fn nvmlDeviceGetCudaComputeCapability(
        device: Handle,
        major: *mut c_int,
        minor: *mut c_int,
    ) {
        of(device)?;
        put(major, 9)?;
        put(minor, 0)
    }

    fn nvmlDeviceGetComputeMode(device: Handle, mode: *mut c_uint) {
        of(device)?;
        put(mode, crate::session()?.config.compute_mode as c_uint)
    }

    fn nvmlDeviceGetPersistenceMode(device: Handle, mode: *mut c_uint) {
        of(device)?;
        put(mode, 1)
    }

    fn nvmlDeviceGetArchitecture(device: Handle, architecture: *mut c_uint) {
        of(device)?;
        put(architecture, 9)
    }

    fn nvmlDeviceGetBrand(device: Handle, brand: *mut c_uint) {
        of(device)?;
        put(brand, 2)
    }

    fn nvmlDeviceGetMigMode(device: Handle, _current: *mut c_uint, _pending: *mut c_uint) {
        of(device)?;
        Err(NOT_SUPPORTED)
    }

    fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: *mut c_uint) {
        of(device)?;
        put(count, 0)
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(
        device: Handle,
        _index: c_uint,
        _handle: *mut Handle,
    ) {
        of(device)?;
        Err(NOT_SUPPORTED)
    }

    fn nvmlDeviceIsMigDeviceHandle(device: Handle, is: *mut c_uint) {
        of(device)?;
        put(is, 0)
    }
}

/// # Safety
/// `count` may be read and written, and `infos` has room for as many.
unsafe fn running<P: From<Usage>>(device: Handle, count: *mut c_uint, infos: *mut P) -> Outcome {
    let (session, index) = of(device)?;
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let users = session.state.users(index);
    // SAFETY: not null, so the caller vouches for it.
    let room = unsafe { count.read() } as usize;
    // SAFETY: as above.
    unsafe { count.write(users.len() as c_uint) };
    if users.is_empty() {
        return Ok(());
    }
    if infos.is_null() || room < users.len() {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, user) in users.into_iter().enumerate() {
        // SAFETY: `at` lies inside the room that the caller has.
        unsafe { infos.add(at).write(user.into()) };
    }
    Ok(())
}

impl From<Usage> for OldProcessInfo {
    fn from(Usage { pid, memory, .. }: Usage) -> Self {
        Self { pid, memory }
    }
}

impl From<Usage> for ProcessInfo {
    fn from(Usage { pid, memory, .. }: Usage) -> Self {
        Self { pid, memory, gpu_instance: c_uint::MAX, compute_instance: c_uint::MAX }
    }
}

pub(crate) fn of(device: Handle) -> Outcome<(Arc<Session>, usize)> {
    let session = session()?;
    let index = (device as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    if index < session.config.gpus.len() { Ok((session, index)) } else { Err(INVALID_ARGUMENT) }
}

fn memory_of(device: Handle) -> Outcome<(u64, u64)> {
    let (session, index) = of(device)?;
    let gpu = &session.config.gpus[index];
    Ok((gpu.memory + gpu.reserved, session.state.used(index) + gpu.reserved))
}

/// What is said of a device at this bus.
pub(crate) fn pci(bus: u32) -> Pci {
    let id = bus_id(bus);
    let mut info = Pci {
        bus_id_legacy: [0; 16],
        domain: 0,
        bus,
        device: 0,
        device_id: 0x2330_10de,
        subsystem_id: 0,
        bus_id: [0; 32],
    };
    for (to, from) in info.bus_id.iter_mut().zip(id.bytes()) {
        *to = from as c_char;
    }
    for (to, from) in info.bus_id_legacy.iter_mut().zip(id[4..].bytes()) {
        *to = from as c_char;
    }
    info
}

fn bus_id(bus: u32) -> String {
    format!("00000000:{bus:02x}:00.0")
}

/// # Safety
/// `text` is null or a string that ends.
unsafe fn text<'a>(text: *const c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, so the caller vouches for it.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| INVALID_ARGUMENT)
}
