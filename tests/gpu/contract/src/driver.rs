//! The driver's functions, found by name in a library that is opened at run time.
//! Owns the border to C.
#![allow(unsafe_code)] // dlopen, and calls of C functions

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

macro_rules! functions {
    ($($name:ident($($p:ident: $t:ty),*);)*) => {
        /// The functions, found.
        #[allow(non_snake_case)]
        pub(crate) struct Driver {
            $($name: unsafe extern "C" fn($($t),*) -> c_uint,)*
            handle: *mut c_void,
        }

        #[allow(non_snake_case, clippy::too_many_arguments)]
        impl Driver {
            /// Opens the driver.
            pub(crate) fn open(path: &Path) -> Result<Driver, String> {
                let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
                // SAFETY: a string that ends; the library is never closed.
                let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
                if handle.is_null() {
                    // SAFETY: dlopen failed, so there is a message.
                    let why = unsafe { std::ffi::CStr::from_ptr(libc::dlerror()) };
                    return Err(why.to_string_lossy().into_owned());
                }
                Ok(Driver {
                    $($name: {
                        let symbol = find(handle, stringify!($name))?;
                        // SAFETY: the driver's function of this name has this signature.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($t),*) -> c_uint,
                            >(symbol)
                        }
                    },)*
                    handle,
                })
            }

            $(pub(crate) fn $name(&self $(, $p: $t)*) -> u32 {
                crate::turns::offer();
                // SAFETY: `gpu` and `cases` pass pointers that live through the call, or
                // numbers that the driver has to check.
                unsafe { (self.$name)($($p),*) }
            })*

            /// cuTensorMapEncodeTiled of 64 numbers of 32 bits; `None`: the driver is older than that.
            pub(crate) fn tensor_map(&self, address: Address) -> Option<u32> {
                type Encode = unsafe extern "C" fn(
                    *mut c_void, c_uint, c_uint, Address, *const u64, *const u64, *const c_uint,
                    *const c_uint, c_uint, c_uint, c_uint, c_uint,
                ) -> c_uint;
                let symbol = find(self.handle, "cuTensorMapEncodeTiled").ok()?;
                crate::turns::offer();
                // SAFETY: the driver's function of this name has this signature.
                let encode: Encode = unsafe { std::mem::transmute(symbol) };
                // Beginning at a multiple of 64, as the driver wants it.
                #[repr(align(64))]
                struct Map([u64; 16]);
                let mut map = Map([0; 16]);
                let (size, strides, one) = (64_u64, [0_u64], 1);
                // SAFETY: a map, and lists of one dimension, on this stack; there are no strides between rows.
                let code = unsafe {
                    // Data type UINT32; no interleaving, swizzling, promotion, or special fill.
                    encode(
                        map.0.as_mut_ptr().cast(), 2, 1, address, &raw const size, strides.as_ptr(),
                        [64].as_ptr(), &raw const one, 0, 0, 0, 0,
                    )
                };
                Some(code)
            }

            /// Whether the library exports a symbol.
            pub(crate) fn exports(&self, name: &str) -> bool {
                find(self.handle, name).is_ok()
            }
        }
    };
}

// SAFETY: addresses of functions that any thread may call, and the library's handle,
// which is only asked for symbols.
unsafe impl Sync for Driver {}

fn find(handle: *mut c_void, name: &str) -> Result<*mut c_void, String> {
    let symbol = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: an open library and a string that ends.
    let found = unsafe { libc::dlsym(handle, symbol.as_ptr()) };
    if found.is_null() { Err(format!("the driver has no {name}")) } else { Ok(found) }
}

/// Handles are numbers here: nothing is ever read through them.
pub(crate) type Handle = usize;
/// A device address.
pub(crate) type Address = u64;

functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetProcAddress_v2(name: *const c_char, to: *mut *mut c_void, version: c_int, flags: u64, status: *mut c_uint);
    cuGetErrorName(code: c_uint, name: *mut *const c_char);
    cuDeviceGetCount(count: *mut c_int);
    cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int);
    cuDevicePrimaryCtxRelease_v2(device: c_int);
    cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int);
    cuDevicePrimaryCtxReset_v2(device: c_int);
    cuCtxSetCurrent(context: Handle);
    cuCtxGetCurrent(context: *mut Handle);
    cuCtxPushCurrent_v2(context: Handle);
    cuCtxPopCurrent_v2(context: *mut Handle);
    cuCtxSynchronize();
    cuModuleLoadData(module: *mut Handle, image: *const c_void);
    cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
    cuModuleUnload(module: Handle);
    cuLibraryLoadData(library: *mut Handle, code: *const c_void, a: usize, b: usize, c: c_uint, d: usize, e: usize, f: c_uint);
    cuLibraryGetKernel(kernel: *mut Handle, library: Handle, name: *const c_char);
    cuModuleLoadDataEx(module: *mut Handle, image: *const c_void, count: c_uint, options: *mut c_uint, values: *mut usize);
    cuLinkCreate_v2(count: c_uint, options: *mut c_uint, values: *mut usize, state: *mut Handle);
    cuLinkAddData_v2(state: Handle, kind: c_uint, data: *const c_void, size: usize, name: *const c_char, count: c_uint, options: *mut c_uint, values: *mut usize);
    cuLinkAddFile_v2(state: Handle, kind: c_uint, path: *const c_char, count: c_uint, options: *mut c_uint, values: *mut usize);
    cuLinkComplete(state: Handle, image: *mut *mut c_void, size: *mut usize);
    cuLinkDestroy(state: Handle);
    cuMemAlloc_v2(pointer: *mut Address, bytes: usize);
    cuMemAllocPitch_v2(pointer: *mut Address, pitch: *mut usize, width: usize, height: usize, element: c_uint);
    cuMemFree_v2(pointer: Address);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemGetAddressRange_v2(base: *mut Address, size: *mut usize, pointer: Address);
    cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(pointer: *mut c_void);
    cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister(pointer: *mut c_void);
    cuMemHostGetDevicePointer_v2(device: *mut Address, pointer: *mut c_void, flags: c_uint);
    cuPointerGetAttribute(value: *mut c_void, attribute: c_uint, pointer: Address);
    cuMemcpyHtoD_v2(to: Address, from: *const c_void, bytes: usize);
    cuMemcpyDtoH_v2(to: *mut c_void, from: Address, bytes: usize);
    cuMemcpyDtoD_v2(to: Address, from: Address, bytes: usize);
    cuMemcpyHtoDAsync_v2(to: Address, from: *const c_void, bytes: usize, stream: Handle);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: Address, bytes: usize, stream: Handle);
    cuMemcpy(to: Address, from: Address, bytes: usize);
    cuMemcpyAsync(to: Address, from: Address, bytes: usize, stream: Handle);
    cuMemcpyDtoDAsync_v2(to: Address, from: Address, bytes: usize, stream: Handle);
    cuMemcpyPeer(to: Address, there: Handle, from: Address, here: Handle, bytes: usize);
    cuMemcpyPeerAsync(to: Address, there: Handle, from: Address, here: Handle, bytes: usize, stream: Handle);
    cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int);
    cuMemcpy2D_v2(shape: *const c_void);
    cuMemsetD8_v2(to: Address, value: u8, count: usize);
    cuMemsetD16_v2(to: Address, value: u16, count: usize);
    cuMemsetD32_v2(to: Address, value: c_uint, count: usize);
    cuMemAllocAsync(pointer: *mut Address, bytes: usize, stream: Handle);
    cuMemFreeAsync(pointer: Address, stream: Handle);
    cuMemAddressReserve(pointer: *mut Address, size: usize, alignment: usize, wanted: Address, flags: u64);
    cuMemAddressFree(pointer: Address, size: usize);
    cuMemGetAllocationGranularity(granularity: *mut usize, properties: *const c_void, option: c_uint);
    cuMemCreate(handle: *mut u64, size: usize, properties: *const c_void, flags: u64);
    cuMemRelease(handle: u64);
    cuMemExportToShareableHandle(to: *mut c_void, handle: u64, kind: c_uint, flags: u64);
    cuMemImportFromShareableHandle(handle: *mut u64, from: *mut c_void, kind: c_uint);
    cuMemMap(pointer: Address, size: usize, offset: usize, handle: u64, flags: u64);
    cuMemUnmap(pointer: Address, size: usize);
    cuMemSetAccess(pointer: Address, size: usize, descriptions: *const c_void, count: usize);
    cuStreamCreate(stream: *mut Handle, flags: c_uint);
    cuStreamSynchronize(stream: Handle);
    cuStreamQuery(stream: Handle);
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    cuLaunchHostFunc(stream: Handle, function: extern "C" fn(*mut c_void), data: *mut c_void);
    cuEventCreate(event: *mut Handle, flags: c_uint);
    cuEventRecord(event: Handle, stream: Handle);
    cuEventQuery(event: Handle);
    cuEventSynchronize(event: Handle);
    cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle);
    cuLaunchKernel(function: Handle, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: Handle, parameters: *mut *mut c_void, extra: *mut *mut c_void);
    cuMemcpy3D_v2(shape: *const c_void);
    cuMemcpyHtoA_v2(to: Handle, offset: usize, from: *const c_void, bytes: usize);
    cuMemcpyAtoH_v2(to: *mut c_void, from: Handle, offset: usize, bytes: usize);
    cuArrayCreate_v2(array: *mut Handle, description: *const c_void);
    cuArray3DCreate_v2(array: *mut Handle, description: *const c_void);
    cuArray3DGetDescriptor_v2(description: *mut c_void, array: Handle);
    cuArrayDestroy(array: Handle);
    cuMipmappedArrayCreate(mipmap: *mut Handle, description: *const c_void, levels: c_uint);
    cuMipmappedArrayGetLevel(array: *mut Handle, mipmap: Handle, level: c_uint);
    cuMipmappedArrayDestroy(mipmap: Handle);
    cuTexObjectCreate(object: *mut u64, resource: *const c_void, texture: *const c_void, view: *const c_void);
    cuTexObjectGetResourceDesc(resource: *mut c_void, object: u64);
    cuTexObjectDestroy(object: u64);
    cuIpcGetMemHandle(handle: *mut c_void, pointer: Address);
    cuIpcOpenMemHandle_v2(pointer: *mut Address, handle: [u64; 8], flags: c_uint);
    cuIpcCloseMemHandle(pointer: Address);
    cuMemAllocFromPoolAsync(pointer: *mut Address, bytes: usize, pool: Handle, stream: Handle);
    cuMemPoolCreate(pool: *mut Handle, properties: *const c_void);
    cuMemPoolDestroy(pool: Handle);
    cuMemPoolTrimTo(pool: Handle, keep: usize);
    cuMemPoolGetAttribute(pool: Handle, attribute: c_uint, value: *mut u64);
    cuMemPoolSetAttribute(pool: Handle, attribute: c_uint, value: *mut u64);
    cuMemPoolGetAccess(flags: *mut c_uint, pool: Handle, location: *mut c_void);
    cuMemPoolSetAccess(pool: Handle, descriptions: *const c_void, count: usize);
    cuMemPoolExportToShareableHandle(to: *mut c_void, pool: Handle, kind: c_uint, flags: u64);
    cuDeviceGetDefaultMemPool(pool: *mut Handle, device: c_int);
    cuStreamDestroy_v2(stream: Handle);
    cuStreamBeginCapture_v2(stream: Handle, mode: c_uint);
    cuStreamEndCapture(stream: Handle, graph: *mut Handle);
    cuStreamIsCapturing(stream: Handle, status: *mut c_uint);
    cuStreamGetCaptureInfo_v2(stream: Handle, status: *mut c_uint, id: *mut u64, graph: *mut Handle, dependencies: *mut *const Handle, count: *mut usize);
    cuStreamUpdateCaptureDependencies(stream: Handle, dependencies: *mut Handle, count: usize, flags: c_uint);
    cuThreadExchangeStreamCaptureMode(mode: *mut c_uint);
    cuGraphCreate(graph: *mut Handle, flags: c_uint);
    cuGraphDestroy(graph: Handle);
    cuGraphClone(copy: *mut Handle, graph: Handle);
    cuGraphNodeFindInClone(node: *mut Handle, original: Handle, copy: Handle);
    cuGraphAddKernelNode_v2(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, parameters: *const c_void);
    cuGraphAddMemcpyNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, shape: *const c_void, context: Handle);
    cuGraphAddMemsetNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, parameters: *const c_void, context: Handle);
    cuGraphAddHostNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, parameters: *const c_void);
    cuGraphAddNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, parameters: *mut c_void);
    cuStreamWriteValue32_v2(stream: Handle, address: Address, value: c_uint, flags: c_uint);
    cuStreamWaitValue32_v2(stream: Handle, address: Address, value: c_uint, flags: c_uint);
    cuStreamBatchMemOp_v2(stream: Handle, count: c_uint, operations: *mut c_void, flags: c_uint);
    cuMemcpy3DPeer(shape: *const c_void);
    cuGraphAddEmptyNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize);
    cuGraphAddChildGraphNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, child: Handle);
    cuGraphAddEventRecordNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, event: Handle);
    cuGraphAddMemAllocNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, parameters: *mut c_void);
    cuGraphAddMemFreeNode(node: *mut Handle, graph: Handle, after: *const Handle, count: usize, pointer: Address);
    cuGraphAddDependencies(graph: Handle, from: *const Handle, to: *const Handle, count: usize);
    cuGraphDestroyNode(node: Handle);
    cuGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize);
    cuGraphGetRootNodes(graph: Handle, nodes: *mut Handle, count: *mut usize);
    cuGraphGetEdges(graph: Handle, from: *mut Handle, to: *mut Handle, count: *mut usize);
    cuGraphNodeGetType(node: Handle, kind: *mut c_uint);
    cuGraphNodeGetDependencies(node: Handle, dependencies: *mut Handle, count: *mut usize);
    cuGraphKernelNodeGetParams_v2(node: Handle, parameters: *mut c_void);
    cuGraphKernelNodeSetParams_v2(node: Handle, parameters: *const c_void);
    cuGraphMemcpyNodeGetParams(node: Handle, shape: *mut c_void);
    cuGraphMemsetNodeGetParams(node: Handle, parameters: *mut c_void);
    cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: u64);
    cuGraphInstantiateWithParams(executable: *mut Handle, graph: Handle, parameters: *mut c_void);
    cuGraphExecKernelNodeSetParams_v2(executable: Handle, node: Handle, parameters: *const c_void);
    cuGraphExecUpdate_v2(executable: Handle, graph: Handle, info: *mut c_void);
    cuGraphNodeSetEnabled(executable: Handle, node: Handle, enabled: c_uint);
    cuGraphUpload(executable: Handle, stream: Handle);
    cuGraphLaunch(executable: Handle, stream: Handle);
    cuGraphExecDestroy(executable: Handle);
    cuGraphDebugDotPrint(graph: Handle, path: *const c_char, flags: c_uint);
    cuDeviceGetGraphMemAttribute(device: c_int, attribute: c_uint, value: *mut u64);
    cuDeviceGraphMemTrim(device: c_int);
}
