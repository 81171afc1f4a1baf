//! The program's contexts, and what reaches from one to another.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};

/// The program's contexts, one a device.
pub(super) struct Devices<'a> {
    cuda: &'a Cuda,
    contexts: BTreeMap<c_int, Handle>,
    current: c_int,
}

impl<'a> Devices<'a> {
    pub(super) fn new(cuda: &'a Cuda) -> Self {
        let mut context = NULL;
        // SAFETY: as declared.
        let result =
            unsafe { function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context) };
        assert_eq!(result, 0);
        Devices { cuda, contexts: BTreeMap::from([(0, context)]), current: 0 }
    }

    pub(super) fn context(&mut self, device: c_int) -> Handle {
        let cuda = self.cuda;
        *self.contexts.entry(device).or_insert_with(|| {
            let mut context = NULL;
            // SAFETY: as declared.
            unsafe {
                let create = function!(cuda, "cuCtxCreate_v2", fn(*mut Handle, c_uint, c_int));
                assert_eq!(create(&raw mut context, 0, device), 0);
            }
            context
        })
    }

    pub(super) fn go(&mut self, device: c_int) {
        let context = self.context(device);
        // SAFETY: as declared.
        let result = unsafe { function!(self.cuda, "cuCtxSetCurrent", fn(Handle))(context) };
        assert_eq!(result, 0);
        self.current = device;
    }

    pub(super) fn current(&self) -> c_int {
        self.current
    }

    pub(super) fn peer(&mut self, enable: bool, device: c_int) {
        let peer = self.context(device);
        self.go(self.current);
        // SAFETY: as declared.
        let result = unsafe {
            match enable {
                true => function!(self.cuda, "cuCtxEnablePeerAccess", fn(Handle, c_uint))(peer, 0),
                false => function!(self.cuda, "cuCtxDisablePeerAccess", fn(Handle))(peer),
            }
        };
        println!("peer={result}");
    }

    /// A kernel of the current device.
    pub(super) fn fill(&self, address: u64, bytes: usize, seed: u64) -> c_int {
        const PTX: &str = concat!(include_str!("../../../../tests/workloads/kernels.ptx"), "\0");
        self.cuda.run_kernel(PTX, c"acb_fill", [address, bytes as u64 / 8, seed])
    }

    /// From a new pool on device 1, which device 0 may use.
    pub(super) fn allocate_in_pool(&self, bytes: usize) -> u64 {
        let cuda = self.cuda;
        // CUmemPoolProps: pinned, no handles, device 1; the rest is zero.
        let properties: [c_int; 24] =
            std::array::from_fn(|at| [1, 0, 1, 1].get(at).copied().unwrap_or(0));
        let access: [c_int; 3] = [1, 0, 3];
        let (mut pool, mut stream, mut address, mut of) = (NULL, NULL, 0u64, 0u64);
        // SAFETY: as declared; 17 is the pool of an address.
        unsafe {
            let make = function!(cuda, "cuMemPoolCreate", fn(*mut Handle, *const c_int));
            assert_eq!(make(&raw mut pool, properties.as_ptr()), 0);
            let open = function!(cuda, "cuMemPoolSetAccess", fn(Handle, *const c_int, usize));
            assert_eq!(open(pool, access.as_ptr(), 1), 0);
            let stream_make = function!(cuda, "cuStreamCreate", fn(*mut Handle, c_uint));
            assert_eq!(stream_make(&raw mut stream, 1), 0);
            let allocate =
                function!(cuda, "cuMemAllocFromPoolAsync", fn(*mut u64, usize, Handle, Handle));
            println!("allocate={}", allocate(&raw mut address, bytes, pool, stream));
            let ask = function!(cuda, "cuPointerGetAttribute", fn(*mut c_void, c_uint, u64));
            assert_eq!(ask((&raw mut of).cast(), 17, address), 0);
        }
        assert_eq!(of, pool as u64);
        address
    }

    pub(super) fn copy(&self, rows: bool, from: (u64, usize), to: u64) -> c_int {
        let (source, bytes) = from;
        let (a, b) = (self.contexts[&0], self.contexts[&1]);
        let cuda = self.cuda;
        if !rows {
            // SAFETY: as declared.
            let result = unsafe {
                function!(cuda, "cuMemcpyPeer", fn(u64, Handle, u64, Handle, usize))(
                    to, b, source, a, bytes,
                )
            };
            return result.max(cuda.synchronize());
        }
        // CUDA_MEMCPY3D_PEER: two sides of eleven words, then width, height and depth.
        let row = 4096;
        let side = |address: u64, context: Handle| {
            [0, 0, 0, 0, 2, 0, address, 0, context as u64, row, bytes as u64 / row / 2]
        };
        let shape: Vec<u64> = side(source, a)
            .into_iter()
            .chain(side(to, b))
            .chain([row, bytes as u64 / row / 2, 2])
            .collect();
        // SAFETY: as declared.
        let result = unsafe { function!(cuda, "cuMemcpy3DPeer", fn(*const u64))(shape.as_ptr()) };
        result.max(cuda.synchronize())
    }
}
