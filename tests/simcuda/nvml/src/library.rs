//! Coming up, versions, error texts, and what concerns no single GPU.

use std::ffi::{CStr, c_char, c_int, c_uint};

use crate::{close, exports, open, put, put_text, session};

/// The release of NVIDIA's driver that the numbers fit.
const DRIVER_RELEASE: &str = "580.65.06";

exports! {
    fn nvmlInit_v2() {
        open()
    }

    fn nvmlInit() {
        open()
    }

    fn nvmlInitWithFlags(_flags: c_uint) {
        open()
    }

    fn nvmlShutdown() {
        close()
    }

    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        session()?;
        put_text(version, length, DRIVER_RELEASE)
    }

    fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) {
        session()?;
        put_text(version, length, concat!("13.", "580.65.06"))
    }

    fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) {
        put(version, session()?.config.driver_version)
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        put(version, session()?.config.driver_version)
    }

    /// The environment, what is on, whether debugging is: 2 is production.
    fn nvmlSystemGetConfComputeState(state: *mut [c_uint; 3]) {
        let on = session()?.config.confidential;
        put(state, if on { [2, 1, 0] } else { [0, 0, 0] })
    }

    fn nvmlSystemGetConfComputeGpusReadyState(accepting: *mut c_uint) {
        put(accepting, c_uint::from(session()?.config.confidential))
    }

    fn nvmlDeviceGetCount_v2(count: *mut c_uint) {
        put(count, session()?.config.gpus.len() as c_uint)
    }

    fn nvmlDeviceGetCount(count: *mut c_uint) {
        put(count, session()?.config.gpus.len() as c_uint)
    }

    fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, length: c_uint) {
        session()?;
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|_| crate::NOT_FOUND)?;
        put_text(name, length, &path.to_string_lossy())
    }
}

/// Never fails, and needs no session.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: c_uint) -> *const c_char {
    let text: &CStr = match code {
        crate::SUCCESS => c"Success",
        crate::UNINITIALIZED => c"Uninitialized",
        crate::INVALID_ARGUMENT => c"Invalid Argument",
        crate::NOT_SUPPORTED => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        crate::NOT_FOUND => c"Not Found",
        crate::INSUFFICIENT_SIZE => c"Insufficient Size",
        8 => c"Insufficient External Power",
        crate::DRIVER_NOT_LOADED => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        crate::ARGUMENT_VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
