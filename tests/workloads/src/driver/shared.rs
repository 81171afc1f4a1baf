//! Memory that processes share by handles of the old kind.
//!
//! Owns: these calls, and the handle's bytes. Does not own: how it gets to the other process.
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::ffi::{c_uint, c_void};

use super::{DevicePtr, Driver, DriverError};

/// `CUipcMemHandle`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Handle([u64; 8]);

functions! {
    take = "cuIpcGetMemHandle"(*mut Handle, DevicePtr);
    open = "cuIpcOpenMemHandle_v2"(*mut DevicePtr, Handle, c_uint);
    close = "cuIpcCloseMemHandle"(DevicePtr);
}

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`
const LAZY_PEERS: c_uint = 1;

/// The calls.
#[derive(Clone, Copy)]
pub struct Sharing<'a> {
    driver: &'a Driver,
    table: Table,
}

impl<'a> Sharing<'a> {
    /// Finds them.
    pub fn of(driver: &'a Driver) -> Result<Self, DriverError> {
        Ok(Self { driver, table: Table::load(&driver.library)? })
    }

    fn error(&self, call: &'static str, code: u32) -> DriverError {
        self.driver.error(call, code)
    }

    /// `cuIpcGetMemHandle`.
    pub fn handle(&self, pointer: DevicePtr) -> Result<Handle, DriverError> {
        let mut handle = Handle::default();
        call!(self, take(&mut handle, pointer))?;
        Ok(handle)
    }

    /// `cuIpcOpenMemHandle`.
    pub fn open(&self, handle: Handle) -> Result<DevicePtr, DriverError> {
        let mut pointer = 0;
        call!(self, open(&mut pointer, handle, LAZY_PEERS))?;
        Ok(pointer)
    }

    /// `cuIpcCloseMemHandle`.
    pub fn close(&self, pointer: DevicePtr) -> Result<(), DriverError> {
        call!(self, close(pointer))
    }
}

impl Handle {
    /// As it is handed over.
    pub fn bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// As it was handed over.
    pub fn of(bytes: &[u8]) -> Self {
        let mut handle = Self::default();
        for (word, bytes) in handle.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
        handle
    }
}
