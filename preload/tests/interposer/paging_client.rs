//! A CUDA program for the tests of paging: it does what a line of words says, and knows every byte of its memory.
//!
//! `a64` allocates 64 MiB (`a3k`: KiB), `A64` in a stream, `w0:7` writes pattern 7 into the first allocation, `c0:7` checks
//! it, `f0` and `F0` free it (in a stream), `p0` prints where it is, `q0` asks the driver about it, `s` synchronises, `?` asks
//! what is free, `[` and `]` begin and end a capture, `!` destroys the context, `.` pauses. `m32` creates and maps 32 MiB,
//! `u0` unmaps them, `n0` maps them anew, `x0` unmaps and releases them.
//!
//! `@1` goes on with device 1, `e1` lets its current context reach memory of that on device 1, `d1` ends that. `k0:7` has a kernel
//! write pattern 7, `v0:7` checks it. `M0:1` copies the first allocation to the second between contexts, `Z0:1` likewise as rows
//! and layers. `g0:1` opens mapped memory to device 1. `h32` is `m32` with a handle type and RDMA asked for; `X0` exports it,
//! imports it again and compares. `i0` asks for a handle of the old way of sharing.
//!
//! `P` prints what the default pool has in use and reserved, `T` trims it. `L4` allocates 4 MiB in a stream of the current device
//! from a pool on device 1 that device 0 may use too. `G0:1` makes a graph that copies the first allocation to the second, `R` runs
//! it. `D` prints how much memory the device has. `y0:1` has copies and fills waited for, and says whether a fill was.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function, pause};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};

/// Word `i` of a pattern.
fn pattern(seed: u64, i: u64) -> u64 {
    (seed << 40 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(crate) fn play(words: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let mut held: Vec<(u64, usize)> = Vec::new();
    let mut handles: BTreeMap<usize, u64> = BTreeMap::new();
    let mut devices = Devices::new(&cuda);
    let mut graph = NULL;
    for word in words.split(' ') {
        let (what, rest) = word.split_at(1);
        match what {
            "a" | "A" => {
                let bytes = size(rest);
                let (result, address) = match what {
                    "a" => cuda.allocate(bytes),
                    _ => allocate_in(&cuda, bytes, stream),
                };
                println!("allocate={result}");
                held.push((address, bytes));
            }
            "w" | "c" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let (address, bytes) = held[index.parse::<usize>().expect("an index")];
                let seed = seed.parse().expect("a number");
                match what {
                    "w" => write(&cuda, address, bytes, seed),
                    _ => check(&cuda, address, bytes, seed),
                }
            }
            "f" => println!("free={}", cuda.free(held[rest.parse::<usize>().unwrap()].0)),
            "F" => {
                let address = held[rest.parse::<usize>().unwrap()].0;
                // SAFETY: as declared.
                let result =
                    unsafe { function!(cuda, "cuMemFreeAsync", fn(u64, Handle))(address, stream) };
                println!("free={result}");
            }
            "p" => println!("at={:#x}", held[rest.parse::<usize>().unwrap()].0),
            "q" => ask(&cuda, held[rest.parse::<usize>().unwrap()].0),
            "@" => devices.go(rest.parse().unwrap()),
            "e" | "d" => devices.peer(what == "e", rest.parse().unwrap()),
            "k" | "v" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let (address, bytes) = held[index.parse::<usize>().expect("an index")];
                let seed = seed.parse().expect("a number");
                match what {
                    "k" => println!("kernel={}", devices.fill(address, bytes, seed)),
                    _ => check_fill(&cuda, address, bytes, seed),
                }
            }
            "M" | "Z" => {
                let (from, to) = rest.split_once(':').expect("from, and to");
                let from = held[from.parse::<usize>().unwrap()];
                let to = held[to.parse::<usize>().unwrap()];
                println!("copied={}", devices.copy(what == "Z", from, to.0));
            }
            "g" => {
                let (index, device) = rest.split_once(':').expect("which, and to whom");
                let (address, bytes) = held[index.parse::<usize>().unwrap()];
                println!("opened={}", open_to(&cuda, address, bytes, device.parse().unwrap()));
            }
            "X" => {
                let index: usize = rest.parse().unwrap();
                export(&cuda, held[index], handles[&index]);
            }
            "G" => {
                let (from, to) = rest.split_once(':').expect("from, and to");
                let from = held[from.parse::<usize>().unwrap()];
                graph = copying_graph(&cuda, from, held[to.parse::<usize>().unwrap()].0);
            }
            "R" => println!("ran={}", run_graph(&cuda, graph)),
            "D" => println!("total={}", total_bytes(&cuda) >> 20),
            "P" => pool_levels(&cuda),
            "T" => println!("trimmed={}", trim(&cuda)),
            "L" => held.push((devices.allocate_in_pool(size(rest)), size(rest))),
            "y" => {
                let (index, on) = rest.split_once(':').expect("which, and whether");
                synchronous(&cuda, held[index.parse::<usize>().unwrap()], on.parse().unwrap());
            }
            "i" => println!("ipc={}", ipc(&cuda, held[rest.parse::<usize>().unwrap()].0)),
            "m" | "h" => {
                let bytes = size(rest);
                let flags = if what == "h" { (1, 1 << 8) } else { (0, 0) };
                let (handle, address) = (create(&cuda, bytes, flags), reserve(&cuda, bytes));
                map(&cuda, address, bytes, handle);
                handles.insert(held.len(), handle);
                held.push((address, bytes));
            }
            "u" | "n" | "x" => {
                let index: usize = rest.parse().unwrap();
                let (address, bytes) = held[index];
                if what == "n" {
                    map(&cuda, address, bytes, handles[&index]);
                } else {
                    println!("unmapped={}", unmap(&cuda, address, bytes));
                }
                if what == "x" {
                    println!("released={}", release(&cuda, handles[&index]));
                }
            }
            "[" => capture(&cuda, stream, true),
            "]" => capture(&cuda, stream, false),
            "!" => destroy(&cuda),
            "s" => println!("synchronize={}", cuda.synchronize()),
            "?" => println!("info={}", free_bytes(&cuda) >> 20),
            "." => pause(),
            other => panic!("no word {other}"),
        }
    }
    println!("end");
}

fn size(text: &str) -> usize {
    match text.strip_suffix('k') {
        Some(number) => number.parse::<usize>().expect("a size") << 10,
        None => text.parse::<usize>().expect("a size") << 20,
    }
}

fn allocate_in(cuda: &Cuda, bytes: usize, stream: Handle) -> (i32, u64) {
    let mut address = 0;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuMemAllocAsync", fn(*mut u64, usize, Handle))(
            &raw mut address,
            bytes,
            stream,
        )
    };
    (result, address)
}

fn write(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let words: Vec<u64> = (0..bytes as u64 / 8).map(|i| pattern(seed, i)).collect();
    // SAFETY: as declared; the vector has that many bytes.
    let result = unsafe {
        function!(cuda, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize))(
            address,
            words.as_ptr().cast(),
            words.len() * 8,
        )
    };
    println!("write={result}");
}

fn check(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let mut words = vec![0u64; bytes / 8];
    // SAFETY: as declared; the vector has that many bytes.
    let result = unsafe {
        function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize))(
            words.as_mut_ptr().cast(),
            address,
            words.len() * 8,
        )
    };
    let wrong = words.iter().zip(0..).filter(|(word, i)| **word != pattern(seed, *i)).count();
    println!("read={result} wrong={wrong}");
}

fn free_bytes(cuda: &Cuda) -> usize {
    let mut free = 0;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuMemGetInfo_v2", fn(*mut usize, *mut usize))(&raw mut free, NULL.cast())
    };
    assert_eq!(result, 0);
    free
}

/// Types of handles, and flags.
fn create(cuda: &Cuda, bytes: usize, (types, flags): (c_int, c_int)) -> u64 {
    // CUmemAllocationProp: pinned, on device 0; the rest is zero.
    let properties: [c_int; 16] = [1, types, 1, 0, 0, 0, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut handle = 0;
    // SAFETY: as declared.
    unsafe {
        let create = function!(cuda, "cuMemCreate", fn(*mut u64, usize, *const c_int, u64));
        assert_eq!(create(&raw mut handle, bytes, properties.as_ptr(), 0), 0);
        let mut told = [9u32; 8];
        let ask = function!(cuda, "cuMemGetAllocationPropertiesFromHandle", fn(*mut u32, u64));
        assert_eq!(ask(told.as_mut_ptr(), handle), 0);
        assert_eq!(told[..4], [1, types as u32, 1, 0]);
    }
    handle
}

fn reserve(cuda: &Cuda, bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: as declared.
    unsafe {
        let reserve = function!(cuda, "cuMemAddressReserve", fn(*mut u64, usize, usize, u64, u64));
        assert_eq!(reserve(&raw mut address, bytes, 0, 0, 0), 0);
    }
    address
}

fn map(cuda: &Cuda, address: u64, bytes: usize, handle: u64) {
    // CUmemAccessDesc: device 0 reads and writes.
    let access: [c_int; 3] = [1, 0, 3];
    let location: [c_int; 2] = [1, 0];
    let (mut flags, mut again) = (0u64, 0u64);
    // SAFETY: as declared.
    unsafe {
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        assert_eq!(map(address, bytes, 0, handle, 0), 0);
        let open = function!(cuda, "cuMemSetAccess", fn(u64, usize, *const c_int, usize));
        assert_eq!(open(address, bytes, access.as_ptr(), 1), 0);
        let ask = function!(cuda, "cuMemGetAccess", fn(*mut u64, *const c_int, u64));
        assert_eq!(ask(&raw mut flags, location.as_ptr(), address), 0);
        let retain = function!(cuda, "cuMemRetainAllocationHandle", fn(*mut u64, *mut c_void));
        assert_eq!(retain(&raw mut again, (address + 4096) as *mut c_void), 0);
    }
    assert_eq!((flags, again), (3, handle));
    assert_eq!(release(cuda, again), 0);
}

fn unmap(cuda: &Cuda, address: u64, bytes: usize) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemUnmap", fn(u64, usize))(address, bytes) }
}

fn release(cuda: &Cuda, handle: u64) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemRelease", fn(u64))(handle) }
}

/// Range, kind of memory and device, asked in the middle of it.
fn ask(cuda: &Cuda, address: u64) {
    let (mut base, mut size) = (0u64, 0usize);
    let (mut kind, mut device) = (9u32, 9i32);
    // SAFETY: as declared; 2 and 9 are the memory's type and the device's ordinal.
    unsafe {
        let range = function!(cuda, "cuMemGetAddressRange_v2", fn(*mut u64, *mut usize, u64));
        assert_eq!(range(&raw mut base, &raw mut size, address + 1000), 0);
        let ask = function!(cuda, "cuPointerGetAttribute", fn(*mut c_void, c_uint, u64));
        assert_eq!(ask((&raw mut kind).cast(), 2, address + 1000), 0);
        assert_eq!(ask((&raw mut device).cast(), 9, address), 0);
        let (mut kinds, mut start) = (9u32, 0u64);
        let attributes: [c_uint; 2] = [2, 11];
        let places: [*mut c_void; 2] = [(&raw mut kinds).cast(), (&raw mut start).cast()];
        let all = function!(
            cuda,
            "cuPointerGetAttributes",
            fn(c_uint, *const c_uint, *const *mut c_void, u64)
        );
        assert_eq!(all(2, attributes.as_ptr(), places.as_ptr(), address + 1), 0);
        assert_eq!((kinds, start), (kind, address));
    }
    println!("size={size} kind={kind} device={device} same={}", base == address);
}

/// Begins or ends a capture in the relaxed mode.
fn capture(cuda: &Cuda, stream: Handle, begin: bool) {
    // SAFETY: as declared.
    let result = unsafe {
        if begin {
            function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_uint))(stream, 2)
        } else {
            let mut graph = NULL;
            function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle))(stream, &raw mut graph)
        }
    };
    println!("{}={result}", if begin { "capturing" } else { "captured" });
}

fn destroy(cuda: &Cuda) {
    let mut context = NULL;
    // SAFETY: as declared.
    unsafe {
        assert_eq!(function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context), 0);
        println!("destroyed={}", function!(cuda, "cuCtxDestroy_v2", fn(Handle))(context));
    }
}

/// The program's contexts, one a device.
struct Devices<'a> {
    cuda: &'a Cuda,
    contexts: BTreeMap<c_int, Handle>,
    current: c_int,
}

impl<'a> Devices<'a> {
    fn new(cuda: &'a Cuda) -> Self {
        let mut context = NULL;
        // SAFETY: as declared.
        let result =
            unsafe { function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context) };
        assert_eq!(result, 0);
        Devices { cuda, contexts: BTreeMap::from([(0, context)]), current: 0 }
    }

    fn context(&mut self, device: c_int) -> Handle {
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

    fn go(&mut self, device: c_int) {
        let context = self.context(device);
        // SAFETY: as declared.
        let result = unsafe { function!(self.cuda, "cuCtxSetCurrent", fn(Handle))(context) };
        assert_eq!(result, 0);
        self.current = device;
    }

    fn peer(&mut self, enable: bool, device: c_int) {
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
    fn fill(&self, address: u64, bytes: usize, seed: u64) -> c_int {
        const PTX: &str = concat!(include_str!("../../../tests/workloads/kernels.ptx"), "\0");
        let mut arguments = [address, bytes as u64 / 8, seed];
        let mut places =
            arguments.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        let (mut module, mut kernel) = (NULL, NULL);
        let cuda = self.cuda;
        // SAFETY: as declared; the kernel's three parameters are 64 bits wide.
        unsafe {
            let load = function!(cuda, "cuModuleLoadData", fn(*mut Handle, *const c_void));
            assert_eq!(load(&raw mut module, PTX.as_ptr().cast()), 0);
            let find = function!(
                cuda,
                "cuModuleGetFunction",
                fn(*mut Handle, Handle, *const std::ffi::c_char)
            );
            assert_eq!(find(&raw mut kernel, module, c"acb_fill".as_ptr()), 0);
            let launch = function!(
                cuda,
                "cuLaunchKernel",
                fn(
                    Handle,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    Handle,
                    *mut Handle,
                    Handle,
                )
            );
            let launched = launch(kernel, 64, 1, 1, 256, 1, 1, 0, NULL, places.as_mut_ptr(), NULL);
            if launched != 0 { launched } else { cuda.synchronize() }
        }
    }

    /// From a new pool on device 1, which device 0 may use.
    fn allocate_in_pool(&self, bytes: usize) -> u64 {
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

    fn copy(&self, rows: bool, from: (u64, usize), to: u64) -> c_int {
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

/// What `acb_fill` leaves.
fn check_fill(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let mut words = vec![0u64; bytes / 8];
    // SAFETY: as declared; the vector has that many bytes.
    let result = unsafe {
        function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize))(
            words.as_mut_ptr().cast(),
            address,
            words.len() * 8,
        )
    };
    let splitmix64 = |seed: u64| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let wrong = words.iter().zip(0..).filter(|(word, i)| **word != splitmix64(seed + i)).count();
    println!("filled={result} wrong={wrong}");
}

fn open_to(cuda: &Cuda, address: u64, bytes: usize, device: c_int) -> c_int {
    let access: [c_int; 3] = [1, device, 3];
    // SAFETY: as declared.
    unsafe {
        function!(cuda, "cuMemSetAccess", fn(u64, usize, *const c_int, usize))(
            address,
            bytes,
            access.as_ptr(),
            1,
        )
    }
}

/// Exports an object as a descriptor, and looks at the same memory through it.
fn export(cuda: &Cuda, (address, bytes): (u64, usize), handle: u64) {
    let mut descriptor: c_int = -1;
    let (mut imported, mut word) = (0u64, [0u64; 2]);
    // SAFETY: as declared.
    unsafe {
        let export =
            function!(cuda, "cuMemExportToShareableHandle", fn(*mut c_int, u64, c_uint, u64));
        let result = export(&raw mut descriptor, handle, 1, 0);
        println!("exported={result}");
        if result != 0 {
            return;
        }
        let import =
            function!(cuda, "cuMemImportFromShareableHandle", fn(*mut u64, *mut c_void, c_uint));
        assert_eq!(import(&raw mut imported, descriptor as usize as *mut c_void, 1), 0);
        assert_eq!(libc::close(descriptor), 0);
        let other = reserve(cuda, bytes);
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        assert_eq!(map(other, bytes, 0, imported, 0), 0);
        assert_eq!(open_to(cuda, other, bytes, 0), 0);
        let read = function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize));
        for (place, from) in word.iter_mut().zip([address, other]) {
            assert_eq!(read(std::ptr::from_mut(place).cast(), from + bytes as u64 - 8, 8), 0);
        }
    }
    println!("same={}", word[0] == word[1]);
}

fn ipc(cuda: &Cuda, address: u64) -> c_int {
    let mut handle = [0u64; 8];
    // SAFETY: as declared; a handle has 64 bytes.
    unsafe { function!(cuda, "cuIpcGetMemHandle", fn(*mut u64, u64))(handle.as_mut_ptr(), address) }
}

fn default_pool(cuda: &Cuda) -> Handle {
    let mut pool = NULL;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuDeviceGetDefaultMemPool", fn(*mut Handle, c_int))(&raw mut pool, 0)
    };
    assert_eq!(result, 0);
    pool
}

fn pool_levels(cuda: &Cuda) {
    let pool = default_pool(cuda);
    let [reserved, reserved_high, used, used_high] = [5, 6, 7, 8].map(|attribute: c_uint| {
        let mut value = 0u64;
        // SAFETY: as declared.
        let result = unsafe {
            function!(cuda, "cuMemPoolGetAttribute", fn(Handle, c_uint, *mut u64))(
                pool,
                attribute,
                &raw mut value,
            )
        };
        assert_eq!(result, 0);
        value >> 20
    });
    println!("used={used}/{used_high} reserved={reserved}/{reserved_high}");
}

fn trim(cuda: &Cuda) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemPoolTrimTo", fn(Handle, usize))(default_pool(cuda), 0) }
}

fn synchronous(cuda: &Cuda, (address, bytes): (u64, usize), on: c_uint) {
    let mut told: c_uint = 9;
    // SAFETY: as declared; 6 says that copies and fills are waited for.
    unsafe {
        let set = function!(cuda, "cuPointerSetAttribute", fn(*const c_uint, c_uint, u64));
        assert_eq!(set(&raw const on, 6, address), 0);
        let ask = function!(cuda, "cuPointerGetAttribute", fn(*mut c_uint, c_uint, u64));
        assert_eq!(ask(&raw mut told, 6, address), 0);
        let fill = function!(cuda, "cuMemsetD8_v2", fn(u64, u8, usize));
        assert_eq!(fill(address, 7, bytes), 0);
        let query = function!(cuda, "cuStreamQuery", fn(Handle));
        println!("synchronous={told} query={}", query(NULL));
    }
    assert_eq!(cuda.synchronize(), 0);
}

/// An executable graph of one copy.
fn copying_graph(cuda: &Cuda, (from, bytes): (u64, usize), to: u64) -> Handle {
    // CUDA_MEMCPY3D: two sides of eleven words, then width, height and depth.
    let side = |address: u64| [0, 0, 0, 0, 2, 0, address, 0, 0, 0, 0];
    let shape: Vec<u64> =
        side(from).into_iter().chain(side(to)).chain([bytes as u64, 1, 1]).collect();
    let (mut graph, mut node, mut executable) = (NULL, NULL, NULL);
    let mut context = NULL;
    // SAFETY: as declared.
    unsafe {
        assert_eq!(function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context), 0);
        let make = function!(cuda, "cuGraphCreate", fn(*mut Handle, c_uint));
        assert_eq!(make(&raw mut graph, 0), 0);
        let add = function!(
            cuda,
            "cuGraphAddMemcpyNode",
            fn(*mut Handle, Handle, *const Handle, usize, *const u64, Handle)
        );
        println!(
            "node={}",
            add(&raw mut node, graph, std::ptr::null(), 0, shape.as_ptr(), context)
        );
        let instantiate =
            function!(cuda, "cuGraphInstantiateWithFlags", fn(*mut Handle, Handle, u64));
        println!("instantiated={}", instantiate(&raw mut executable, graph, 0));
    }
    executable
}

fn run_graph(cuda: &Cuda, graph: Handle) -> c_int {
    // SAFETY: as declared.
    let result = unsafe { function!(cuda, "cuGraphLaunch", fn(Handle, Handle))(graph, NULL) };
    result.max(cuda.synchronize())
}

fn total_bytes(cuda: &Cuda) -> usize {
    let mut bytes = 0;
    // SAFETY: as declared.
    let result =
        unsafe { function!(cuda, "cuDeviceTotalMem_v2", fn(*mut usize, c_int))(&raw mut bytes, 0) };
    assert_eq!(result, 0);
    bytes
}
