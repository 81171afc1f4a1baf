//! The CUDA driver's functions as the probe calls them: found by name at run time, so that the
//! probe starts, and says what is missing, on a machine without a driver or with an old one.
//! Owns the calling conventions; what calls mean and who owns what is `driver::device`.
// Foreign functions are found by name and called.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;

use acb_cuda_abi::sys;

/// Address in device memory.
pub(crate) type DevicePtr = u64;
/// Handle of a context, stream, event, module, function or host pointer.
pub(crate) type Handle = *mut c_void;

/// `CUDA_ERROR_NOT_READY`: what a query says of work that still runs.
pub(crate) const NOT_READY: c_int = 600;

/// Why a driver call did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// No driver library.
    #[error("no CUDA driver: {0}")]
    NoLibrary(String),
    /// The driver is too old for the call, or too new.
    #[error("this driver has no {0}")]
    NoFunction(&'static str),
    /// The call failed.
    #[error("{call} failed: {name} ({code})")]
    Failed {
        /// The driver's function.
        call: &'static str,
        /// CUresult.
        code: c_int,
        /// The code's name, as the driver says it.
        name: String,
    },
}

impl DriverError {
    /// The CUresult, if the driver was asked at all.
    pub(crate) fn code(&self) -> Option<c_int> {
        match self {
            DriverError::Failed { code, .. } => Some(*code),
            DriverError::NoLibrary(_) | DriverError::NoFunction(_) => None,
        }
    }
}

/// Declares the table: one field and one method a function.
macro_rules! driver_functions {
    ($($name:ident ( $($arg:ident : $type:ty),* $(,)? );)*) => {
        /// The driver's functions, found at run time.
        #[allow(non_snake_case)]
        pub(crate) struct Driver {
            library: Handle,
            $($name: Option<unsafe extern "C" fn($($type),*) -> c_int>,)*
        }

        #[allow(non_snake_case, clippy::too_many_arguments)]
        impl Driver {
            fn resolve(library: Handle) -> Self {
                Self {
                    library,
                    $($name: {
                        let symbol = find(library, stringify!($name));
                        // SAFETY: a driver's export of this name has this C signature (cuda.h); null is None.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                Option<unsafe extern "C" fn($($type),*) -> c_int>,
                            >(symbol)
                        }
                    },)*
                }
            }

            $(
                /// The driver's function of this name.
                ///
                /// # Safety
                /// As the driver's documentation says of the arguments.
                pub(crate) unsafe fn $name(&self, $($arg: $type),*) -> Result<(), DriverError> {
                    let function = self.$name.ok_or(DriverError::NoFunction(stringify!($name)))?;
                    // SAFETY: the caller's promise.
                    let code = unsafe { function($($arg),*) };
                    if code == 0 { Ok(()) } else { Err(self.failed(stringify!($name), code)) }
                }
            )*
        }
    };
}

driver_functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetProcAddress_v2(name: *const c_char, out: *mut Handle, version: c_int, flags: u64, status: *mut c_int);
    cuDeviceGet(device: *mut c_int, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int);
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int);
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
    cuDeviceGetPCIBusId(name: *mut c_char, length: c_int, device: c_int);
    cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int);
    cuCtxSetCurrent(context: Handle);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(out: *mut DevicePtr, bytes: usize);
    cuMemFree_v2(at: DevicePtr);
    cuMemHostAlloc(out: *mut Handle, bytes: usize, flags: c_uint);
    cuMemFreeHost(at: Handle);
    cuMemHostRegister_v2(at: Handle, bytes: usize, flags: c_uint);
    cuMemHostUnregister(at: Handle);
    cuMemcpyHtoD_v2(to: DevicePtr, from: *const c_void, bytes: usize);
    cuMemcpyDtoH_v2(to: *mut c_void, from: DevicePtr, bytes: usize);
    cuMemcpyHtoDAsync_v2(to: DevicePtr, from: *const c_void, bytes: usize, stream: Handle);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePtr, bytes: usize, stream: Handle);
    cuMemcpyDtoDAsync_v2(to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle);
    cuMemsetD8Async(at: DevicePtr, value: u8, bytes: usize, stream: Handle);
    cuStreamCreate(stream: *mut Handle, flags: c_uint);
    cuStreamSynchronize(stream: Handle);
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    cuStreamDestroy_v2(stream: Handle);
    cuEventCreate(event: *mut Handle, flags: c_uint);
    cuEventRecord(event: Handle, stream: Handle);
    cuEventQuery(event: Handle);
    cuEventSynchronize(event: Handle);
    cuEventElapsedTime(ms: *mut f32, from: Handle, to: Handle);
    cuEventDestroy_v2(event: Handle);
    cuModuleLoadData(module: *mut Handle, image: *const c_void);
    cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
    cuLaunchKernel(
        function: Handle,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void,
    );
    cuMemGetAllocationGranularity(bytes: *mut usize, prop: *const sys::CUmemAllocationProp, option: c_int);
    cuMemAddressReserve(out: *mut DevicePtr, bytes: usize, align: usize, at: DevicePtr, flags: u64);
    cuMemAddressFree(at: DevicePtr, bytes: usize);
    cuMemCreate(out: *mut u64, bytes: usize, prop: *const sys::CUmemAllocationProp, flags: u64);
    cuMemRelease(handle: u64);
    cuMemMap(at: DevicePtr, bytes: usize, offset: usize, handle: u64, flags: u64);
    cuMemUnmap(at: DevicePtr, bytes: usize);
    cuMemSetAccess(at: DevicePtr, bytes: usize, access: *const sys::CUmemAccessDesc, count: usize);
    cuCheckpointProcessGetState(pid: c_int, state: *mut c_int);
    cuCheckpointProcessLock(pid: c_int, args: *mut c_void);
    cuCheckpointProcessCheckpoint(pid: c_int, args: *mut c_void);
    cuCheckpointProcessRestore(pid: c_int, args: *mut c_void);
    cuCheckpointProcessUnlock(pid: c_int, args: *mut c_void);
}

// SAFETY: the fields are a library handle that is never closed and addresses of its functions; the driver API
// may be called from any thread.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Opens `libcuda.so.1` as any program does: under `agarun` that is the interposer.
    pub(crate) fn open() -> Result<Self, DriverError> {
        // SAFETY: a constant C string; the library is never closed.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err(DriverError::NoLibrary(last_error()));
        }
        Ok(Self::resolve(library))
    }

    /// The file that `libcuda.so.1` came from.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        Some(symbol_at(find(self.library, "cuInit") as usize)?.1)
    }

    /// Address that `dlsym` gives for a name; 0: none.
    pub(crate) fn address(&self, name: &str) -> usize {
        find(self.library, name) as usize
    }

    /// What `cuGetProcAddress_v2` answers: the address, or the CUresult and the query status.
    pub(crate) fn proc_address(
        &self,
        name: &str,
        version: i32,
        flags: u64,
    ) -> Result<usize, (i32, i32)> {
        let c_name = CString::new(name).map_err(|_| (1, 0))?;
        let (mut out, mut status) = (std::ptr::null_mut(), 0);
        // SAFETY: all pointers are to live locals.
        let result = unsafe {
            self.cuGetProcAddress_v2(c_name.as_ptr(), &mut out, version, flags, &mut status)
        };
        match result {
            Ok(()) if !out.is_null() => Ok(out as usize),
            Ok(()) => Err((0, status)),
            Err(error) => Err((error.code().unwrap_or(-1), status)),
        }
    }

    fn failed(&self, call: &'static str, code: c_int) -> DriverError {
        DriverError::Failed { call, code, name: self.error_name(code) }
    }

    /// Apart from the table, for its own failure must not ask for a name again.
    fn error_name(&self, code: c_int) -> String {
        type Function = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        let mut name = std::ptr::null();
        // SAFETY: the driver's export of this name has this C signature (cuda.h); null is None.
        let function = unsafe {
            std::mem::transmute::<Handle, Option<Function>>(find(self.library, "cuGetErrorName"))
        };
        if let Some(function) = function {
            // SAFETY: `name` is a live local; the driver sets it to a constant string of its own, or null.
            unsafe { function(code, &mut name) };
        }
        if name.is_null() {
            return "unknown error".into();
        }
        // SAFETY: a constant, NUL-terminated string of the driver.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

/// The exported symbol that begins exactly at an address, and the file it is in.
pub(crate) fn symbol_at(address: usize) -> Option<(Option<String>, PathBuf)> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: `info` is a live local; any address may be asked for.
    if unsafe { libc::dladdr(address as *const c_void, &mut info) } == 0 || info.dli_fname.is_null()
    {
        return None;
    }
    // SAFETY: dladdr succeeded: a NUL-terminated string of the loader, which never unloads this library.
    let file = unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned();
    let name = if info.dli_sname.is_null() || info.dli_saddr as usize != address {
        None
    } else {
        // SAFETY: as above.
        Some(unsafe { CStr::from_ptr(info.dli_sname) }.to_string_lossy().into_owned())
    };
    Some((name, PathBuf::from(file)))
}

fn find(library: Handle, name: &str) -> Handle {
    let Ok(name) = CString::new(name) else { return std::ptr::null_mut() };
    // SAFETY: an open library and a C string.
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

fn last_error() -> String {
    // SAFETY: dlerror gives null or a string that lives until this thread's next dl call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "dlopen(\"libcuda.so.1\") failed".into();
    }
    // SAFETY: not null, hence a C string.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}
