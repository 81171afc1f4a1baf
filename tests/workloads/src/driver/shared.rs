//! Memory that processes share by handles of the old kind, and the streams of threads.
//!
//! Owns: these calls. Does not own: what is in the memory, who opens it.
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DevicePtr, Driver, DriverError, Stream};

/// As the driver has it.
type Words = [u64; 8];

/// By value: 64 bytes on the stack.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcHandle(Words);

functions! {
    take = "cuIpcGetMemHandle"(*mut Words, DevicePtr);
    open = "cuIpcOpenMemHandle_v2"(*mut DevicePtr, IpcHandle, c_uint);
    close = "cuIpcCloseMemHandle"(DevicePtr);
    tell = "cuLaunchHostFunc"(*mut c_void, extern "C" fn(*mut c_void), *mut c_void);
    event = "cuEventCreate"(*mut *mut c_void, c_uint);
    record = "cuEventRecord"(*mut c_void, *mut c_void);
    wait_for = "cuStreamWaitEvent"(*mut c_void, *mut c_void, c_uint);
    destroy_event = "cuEventDestroy_v2"(*mut c_void);
}
