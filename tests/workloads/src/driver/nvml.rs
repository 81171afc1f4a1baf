//! What NVML says of the first CUDA device: its memory, and who uses it.
//!
//! Owns: the calls of NVML, in all forms that its lists of processes have. Does not own: how it must agree with
//! what the driver says.
#![allow(unsafe_code)] // FFI: calls of NVML.

use std::ffi::{CString, c_char, c_uint, c_void};
use std::ptr;

use super::{Driver, DriverError, Library};

functions! {
    init = "nvmlInit_v2"();
    by_uuid = "nvmlDeviceGetHandleByUUID"(*const c_char, *mut *mut c_void);
    memory = "nvmlDeviceGetMemoryInfo"(*mut c_void, *mut [u64; 3]);
    running = "nvmlDeviceGetComputeRunningProcesses"(*mut c_void, *mut c_uint, *mut Old);
    running_2 = "nvmlDeviceGetComputeRunningProcesses_v2"(*mut c_void, *mut c_uint, *mut New);
    running_3 = "nvmlDeviceGetComputeRunningProcesses_v3"(*mut c_void, *mut c_uint, *mut New);
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Old {
    pid: c_uint,
    used: u64,
}

/// `nvmlProcessInfo_v2_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct New {
    pid: c_uint,
    used: u64,
    instances: [c_uint; 2],
}

/// NVML's answers.
#[derive(Clone, Debug)]
pub struct Told {
    /// Bytes.
    pub total: u64,
    /// Bytes.
    pub free: u64,
    /// Bytes.
    pub used: u64,
    /// Processes and their bytes, in each form of the list.
    pub processes: [Vec<(u32, u64)>; 3],
}

struct Nvml<'a> {
    driver: &'a Driver,
    table: Table,
}

impl Nvml<'_> {
    fn error(&self, call: &'static str, code: u32) -> DriverError {
        self.driver.error(call, code)
    }
}

impl Driver {
    /// Opens NVML by a name or a path, and asks it about the first device.
    pub fn ask_nvml(&self, name: &str) -> Result<Told, DriverError> {
        const MOST: usize = 64;
        let nvml = Nvml { driver: self, table: Table::load(&Library::open(name)?)? };
        call!(nvml, init())?;
        let uuid = CString::new(written(self.device_uuid(0)?)).expect("digits have no zeroes");
        let (mut device, mut memory) = (ptr::null_mut(), [0; 3]);
        call!(nvml, by_uuid(uuid.as_ptr(), &mut device))?;
        call!(nvml, memory(device, &mut memory))?;
        let mut old = [Old::default(); MOST];
        let mut new = [[New::default(); MOST]; 2];
        let mut counts = [MOST as c_uint; 3];
        call!(nvml, running(device, &mut counts[0], old.as_mut_ptr()))?;
        call!(nvml, running_2(device, &mut counts[1], new[0].as_mut_ptr()))?;
        call!(nvml, running_3(device, &mut counts[2], new[1].as_mut_ptr()))?;
        let [one, two] = new.map(|list| list.map(|process| (process.pid, process.used)));
        let mut lists = [old.map(|process| (process.pid, process.used)), one, two].into_iter();
        let processes = counts.map(|count| lists.next().expect("three")[..count as usize].to_vec());
        let [total, free, used] = memory;
        Ok(Told { total, free, used, processes })
    }
}

/// As NVML names a GPU.
fn written(uuid: [u8; 16]) -> String {
    let mut text = String::from("GPU-");
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_as_nvml_names_it() {
        let uuid = std::array::from_fn(|at| 0xa0 + at as u8);
        assert_eq!(written(uuid), "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
    }
}
