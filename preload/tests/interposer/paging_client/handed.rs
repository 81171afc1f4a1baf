//! Memory that is handed on: to multicast objects, to arrays, to other devices, to textures.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use super::content::pattern;
use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Binds memory, by its handle or by its address, to a new object of the one device.
pub(super) fn bind(cuda: &Cuda, (address, bytes): (u64, usize), handle: Option<u64>) -> c_int {
    // CUmulticastObjectProp: devices, size, handle types, flags.
    let properties: [u64; 4] = [1, bytes as u64, 0, 0];
    let mut object = 0;
    // SAFETY: as declared.
    unsafe {
        let make = function!(cuda, "cuMulticastCreate", fn(*mut u64, *const u64));
        assert_eq!(make(&raw mut object, properties.as_ptr()), 0);
        let add = function!(cuda, "cuMulticastAddDevice", fn(u64, c_int));
        assert_eq!(add(object, 0), 0);
        match handle {
            Some(handle) => {
                let bind =
                    function!(cuda, "cuMulticastBindMem", fn(u64, usize, u64, usize, usize, u64));
                bind(object, 0, handle, 0, bytes, 0)
            }
            None => {
                let bind = function!(cuda, "cuMulticastBindAddr", fn(u64, usize, u64, usize, u64));
                bind(object, 0, address, bytes, 0)
            }
        }
    }
}

/// Memory of devices 0 and 1 behind one address, which a kernel of the current device writes to.
pub(super) fn multicast(cuda: &Cuda, bytes: usize, memory: [u64; 2], seed: u64) {
    const PTX: &str = "\
.version 8.1\n.target sm_90\n.address_size 64\n\
.visible .entry acb_multicast(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n\0";
    let properties: [u64; 4] = [2, bytes as u64, 0, 0];
    let (mut object, address) = (0, super::mapping::reserve(cuda, bytes));
    // SAFETY: as declared.
    unsafe {
        let make = function!(cuda, "cuMulticastCreate", fn(*mut u64, *const u64));
        assert_eq!(make(&raw mut object, properties.as_ptr()), 0);
        let add = function!(cuda, "cuMulticastAddDevice", fn(u64, c_int));
        let bind = function!(cuda, "cuMulticastBindMem", fn(u64, usize, u64, usize, usize, u64));
        assert_eq!(add(object, 0), 0);
        println!("early={}", bind(object, 0, memory[0], 0, bytes, 0));
        assert_eq!(add(object, 1), 0);
        for memory in memory {
            println!("bound={}", bind(object, 0, memory, 0, bytes, 0));
        }
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        println!("mapped={}", map(address, bytes, 0, object, 0));
        println!("opened={}", super::mapping::open_to(cuda, address, bytes, 0));
        // What is mapped lives on.
        assert_eq!(super::mapping::release(cuda, object), 0);
        let numbers = [address, bytes as u64 / 8, seed];
        println!("kernel={}", cuda.run_kernel(PTX, c"acb_multicast", numbers));
    }
    println!("unmapped={}", super::mapping::unmap(cuda, address, bytes));
}

/// Binds memory, by its handle or by its address, to a logical endpoint; the software GPU has none.
pub(super) fn at_endpoint(
    cuda: &Cuda,
    (address, bytes): (u64, usize),
    handle: Option<u64>,
) -> c_int {
    // SAFETY: as declared.
    unsafe {
        match handle {
            Some(handle) => function!(
                cuda,
                "cuLogicalEndpointBindMem",
                fn(c_uint, c_int, u64, u64, u64, u64, u64)
            )(1, 0, 0, handle, 0, bytes as u64, 0),
            None => function!(
                cuda,
                "cuLogicalEndpointBindAddr",
                fn(c_uint, c_int, u64, u64, u64, u64)
            )(1, 0, 0, address, bytes as u64, 0),
        }
    }
}

/// What another device would see through a descriptor.
pub(super) fn descriptor(cuda: &Cuda, (address, bytes): (u64, usize)) {
    let (mut descriptor, mut words): (c_int, _) = (-1, vec![0_u64; bytes / 8]);
    // SAFETY: as declared; 1 is the type of such descriptors. The mapping is as long as the memory.
    let same = unsafe {
        let take = function!(
            cuda,
            "cuMemGetHandleForAddressRange",
            fn(*mut c_int, u64, usize, c_uint, u64)
        );
        let result = take(&raw mut descriptor, address, bytes, 1, 0);
        println!("descriptor={result}");
        if result != 0 {
            return;
        }
        let read = function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize));
        assert_eq!(read(words.as_mut_ptr().cast(), address, bytes), 0);
        let file = OwnedFd::from_raw_fd(descriptor);
        let (at, shared) = (std::ptr::null_mut(), libc::MAP_SHARED);
        let seen = libc::mmap(at, bytes, libc::PROT_READ, shared, file.as_raw_fd(), 0);
        assert_ne!(seen, libc::MAP_FAILED);
        let same = std::slice::from_raw_parts(seen.cast::<u64>(), bytes / 8) == &words[..];
        libc::munmap(seen, bytes);
        same
    };
    println!("same={same}");
}

/// `CUarrayMapInfo`, for the first level of an array.
#[repr(C)]
struct MapInfo {
    resource: c_uint,
    array: Handle,
    subresource: c_uint,
    /// level, layer, offset and extent
    part: [c_uint; 8],
    operation: c_uint,
    handle_kind: c_uint,
    memory: u64,
    offset: u64,
    devices: c_uint,
    flags: c_uint,
    reserved: [c_uint; 2],
}

/// Puts memory behind a sparse array, and looks for its pattern there.
pub(super) fn behind_array(cuda: &Cuda, bytes: usize, handle: u64, seed: u64) {
    let width = bytes / 8;
    // CUDA_ARRAY3D_DESCRIPTOR: elements of two words of 32 bits; sparse.
    let shape: [u64; 5] = [width as u64, 0, 0, 2 << 32 | 3, 0x40];
    let (mut array, mut words) = (NULL, vec![0_u64; width]);
    // SAFETY: as declared.
    unsafe {
        let make = function!(cuda, "cuArray3DCreate_v2", fn(*mut Handle, *const u64));
        assert_eq!(make(&raw mut array, shape.as_ptr()), 0);
        let info = MapInfo {
            resource: 0,
            array,
            subresource: 0,
            part: [0, 0, 0, 0, 0, width as c_uint, 1, 1],
            operation: 1,
            handle_kind: 0,
            memory: handle,
            offset: 0,
            devices: 1,
            flags: 0,
            reserved: [0; 2],
        };
        let map = function!(cuda, "cuMemMapArrayAsync", fn(*const MapInfo, c_uint, Handle));
        println!("mapped={}", map(&raw const info, 1, NULL));
        let read = function!(cuda, "cuMemcpyAtoH_v2", fn(*mut c_void, Handle, usize, usize));
        assert_eq!(read(words.as_mut_ptr().cast(), array, 0, bytes), 0);
    }
    let right = words.iter().zip(0..).all(|(word, i)| *word == pattern(seed, i));
    println!("same={right}");
}

/// Memory of another library's, with a pattern in it.
pub(super) fn foreign(cuda: &Cuda, bytes: usize, seed: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let words: Vec<u8> =
        (0..bytes as u64 / 8).flat_map(|i| pattern(seed, i).to_ne_bytes()).collect();
    let (mut external, mut address) = (NULL, 0);
    // SAFETY: as declared; the descriptor is new, and the driver's after the call. CUDA_EXTERNAL_MEMORY_HANDLE_DESC: 1 for descriptors,
    // the handle's three words, size, flags. CUDA_EXTERNAL_MEMORY_BUFFER_DESC: offset, size, flags.
    unsafe {
        let number = libc::memfd_create(c"another-library".as_ptr(), 0);
        let file = std::fs::File::from(OwnedFd::from_raw_fd(number));
        file.write_all_at(&words, 0).expect("there is memory");
        let mut wanted = [0_u64; 13];
        (wanted[0], wanted[1], wanted[3]) = (1, file.as_raw_fd() as u64, bytes as u64);
        let import = function!(cuda, "cuImportExternalMemory", fn(*mut Handle, *const u64));
        println!("imported={}", import(&raw mut external, wanted.as_ptr()));
        std::mem::forget(file);
        let mut wanted = [0_u64; 11];
        wanted[1] = bytes as u64;
        let map =
            function!(cuda, "cuExternalMemoryGetMappedBuffer", fn(*mut u64, Handle, *const u64));
        println!("mapped={}", map(&raw mut address, external, wanted.as_ptr()));
        let destroy = function!(cuda, "cuDestroyExternalMemory", fn(Handle));
        // What is mapped is there until it is freed.
        println!("destroyed={}", destroy(external));
    }
    address
}

/// A texture of linear memory.
pub(super) fn texture(cuda: &Cuda, (address, bytes): (u64, usize), of_rows: bool) -> c_int {
    // CUDA_RESOURCE_DESC: linear memory, or rows of it, of single words of 32 bits; all else is zero, also in CUDA_TEXTURE_DESC.
    let row = 4096;
    let shape = match of_rows {
        true => [3, address, 1 << 32 | 3, row / 4, bytes as u64 / row, row],
        false => [2, address, 1 << 32 | 3, bytes as u64, 0, 0],
    };
    let resource: [u64; 18] = std::array::from_fn(|at| shape.get(at).copied().unwrap_or(0));
    let (texture, mut object) = ([0_u64; 13], 0);
    // SAFETY: as declared.
    unsafe {
        let make = function!(
            cuda,
            "cuTexObjectCreate",
            fn(*mut u64, *const u64, *const u64, *const c_void)
        );
        make(&raw mut object, resource.as_ptr(), texture.as_ptr(), NULL)
    }
}
