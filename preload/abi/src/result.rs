//! Result codes as they cross the C border: any integer, so that a code which is newer than the
//! bindings is no undefined behaviour.

use std::ffi::c_uint;

/// What a driver function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
#[must_use]
pub struct CuResult(pub c_uint);

macro_rules! codes {
    ($($name:ident = $code:ident;)*) => {
        impl CuResult {
            $(
                #[doc = concat!("`", stringify!($code), "`")]
                pub const $name: CuResult =
                    CuResult(crate::sys::cudaError_enum::$code as c_uint);
            )*

            /// NVIDIA's name for the code, where it is one of those used here.
            pub fn name(self) -> Option<&'static str> {
                $(if self == CuResult::$name {
                    return Some(stringify!($code));
                })*
                None
            }
        }
    };
}

codes! {
    SUCCESS = CUDA_SUCCESS;
    INVALID_VALUE = CUDA_ERROR_INVALID_VALUE;
    OUT_OF_MEMORY = CUDA_ERROR_OUT_OF_MEMORY;
    NOT_INITIALIZED = CUDA_ERROR_NOT_INITIALIZED;
    DEINITIALIZED = CUDA_ERROR_DEINITIALIZED;
    NO_DEVICE = CUDA_ERROR_NO_DEVICE;
    INVALID_DEVICE = CUDA_ERROR_INVALID_DEVICE;
    INVALID_IMAGE = CUDA_ERROR_INVALID_IMAGE;
    INVALID_CONTEXT = CUDA_ERROR_INVALID_CONTEXT;
    INVALID_HANDLE = CUDA_ERROR_INVALID_HANDLE;
    ILLEGAL_STATE = CUDA_ERROR_ILLEGAL_STATE;
    NOT_FOUND = CUDA_ERROR_NOT_FOUND;
    NOT_READY = CUDA_ERROR_NOT_READY;
    ILLEGAL_ADDRESS = CUDA_ERROR_ILLEGAL_ADDRESS;
    LAUNCH_OUT_OF_RESOURCES = CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    LAUNCH_FAILED = CUDA_ERROR_LAUNCH_FAILED;
    NOT_PERMITTED = CUDA_ERROR_NOT_PERMITTED;
    HOST_MEMORY_ALREADY_REGISTERED = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    NOT_SUPPORTED = CUDA_ERROR_NOT_SUPPORTED;
    OPERATING_SYSTEM = CUDA_ERROR_OPERATING_SYSTEM;
    SYSTEM_NOT_READY = CUDA_ERROR_SYSTEM_NOT_READY;
    STREAM_CAPTURE_UNSUPPORTED = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    STREAM_CAPTURE_INVALIDATED = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    STREAM_CAPTURE_IMPLICIT = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    UNKNOWN = CUDA_ERROR_UNKNOWN;
}

impl CuResult {
    /// Whether the call did what it was asked for.
    pub fn is_success(self) -> bool {
        self == CuResult::SUCCESS
    }
}
