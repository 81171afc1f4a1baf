//! Programs that call what the driver exports, in every way to find it: arguments arrive, addresses agree, ways out stay open.
#![allow(unsafe_code)] // FFI: CUDA programs call C functions.

use crate::client::{Cuda, Handle, NULL, function, pause};
use std::ffi::{CStr, CString, c_char, c_int, c_uint};

/// Every register that carries arguments survives the way to the driver, the first call's included.
pub(crate) fn arguments() {
    let cuda = Cuda::load();
    // SAFETY: as declared; the driver for tests looks at numbers alone.
    unsafe {
        type Link = unsafe extern "C" fn(
            Handle,
            c_int,
            Handle,
            usize,
            Handle,
            c_uint,
            Handle,
            Handle,
        ) -> c_int;
        let link: Link = std::mem::transmute(cuda.find("cuLinkAddData_v2"));
        let clamp = function!(cuda, "cuTexRefSetMipmapLevelClamp", fn(Handle, f32, f32));
        for _ in 0..2 {
            link(1 as Handle, 2, 3 as Handle, 4, 5 as Handle, 6, 7 as Handle, 8 as Handle);
            clamp(9 as Handle, 0.5, 1.25);
        }
    }
}

/// What cuGetProcAddress answers: `name version flags`, separated by commas.
pub(crate) fn addresses(questions: &str) {
    let cuda = Cuda::load();
    for question in questions.split(',') {
        let words: Vec<&str> = question.split(' ').collect();
        let name = CString::new(words[0]).expect("no NUL");
        let (version, flags) =
            (words[1].parse().expect("a version"), words[2].parse().expect("flags"));
        let (mut old, mut new, mut status) = (NULL, NULL, 77);
        // SAFETY: as declared.
        let results = unsafe {
            (
                function!(cuda, "cuGetProcAddress", fn(*const c_char, *mut Handle, c_int, u64))(
                    name.as_ptr(),
                    &raw mut old,
                    version,
                    flags,
                ),
                function!(
                    cuda,
                    "cuGetProcAddress_v2",
                    fn(*const c_char, *mut Handle, c_int, u64, *mut c_int)
                )(name.as_ptr(), &raw mut new, version, flags, &raw mut status),
            )
        };
        assert_eq!(results.0, results.1);
        assert_eq!(old, new);
        println!("{question}: {} {status} {}", results.0, owner(new));
    }
}

/// Which symbol of which library lies at an address.
pub(crate) fn owner(address: Handle) -> String {
    if address.is_null() {
        return "nothing".into();
    }
    // SAFETY: dladdr fills the structure or returns 0.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &raw mut info) == 0 || info.dli_sname.is_null() {
            return "unknown".into();
        }
        let file = CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned();
        let library = if file.ends_with("libcuda.so.1") { "driver" } else { "interposer" };
        format!("{library} {}", CStr::from_ptr(info.dli_sname).to_string_lossy())
    }
}

/// Every symbol of the list is found, and is the interposer's.
/// Allocates 100 MiB from a pool that could be shared with other processes; `place` is the kind of its location.
/// A green context, memory under it, and its end.
pub(crate) fn green() {
    let cuda = Cuda::load();
    assert_eq!(cuda.init(), 0);
    let (mut green, mut context) = (NULL, NULL);
    // SAFETY: as declared.
    let made = unsafe {
        function!(cuda, "cuGreenCtxCreate", fn(*mut Handle, Handle, c_int, c_uint))(
            &raw mut green,
            5 as Handle,
            0,
            1,
        )
    };
    println!("green={made}");
    pause();
    if made != 0 {
        return;
    }
    // SAFETY: as declared.
    unsafe {
        assert_eq!(
            function!(cuda, "cuCtxFromGreenCtx", fn(*mut Handle, Handle))(&raw mut context, green),
            0
        );
        let set = function!(cuda, "cuCtxSetCurrent", fn(Handle));
        assert_eq!(set(context), 0);
        println!("allocate={}", cuda.allocate(100 << 20).0);
        pause();
        assert_eq!(set(NULL), 0);
        println!("gone={}", function!(cuda, "cuGreenCtxDestroy", fn(Handle))(green));
    }
    pause();
}

/// Memory and semaphores of others, memory of the host, private tables; then a signal to another library.
pub(crate) fn ways_out() {
    let cuda = Cuda::start();
    pause();
    let identity: [u8; 16] = std::array::from_fn(|at| 7 + at as u8);
    let mut described = [0_u64; 13];
    (described[0], described[1], described[3]) = (1, 2, 3);
    let resource = 21 as Handle;
    let (mut table, mut memory, mut semaphore) = (NULL, NULL, NULL);
    let (mut mapped, mut host) = (0_u64, 0_u64);
    // SAFETY: as declared; the driver for tests looks at these numbers alone.
    let results = unsafe {
        type Describe = unsafe extern "C" fn(*mut Handle, *const u64) -> c_int;
        let import: Describe = std::mem::transmute(cuda.find("cuImportExternalMemory"));
        let semaphores: Describe = std::mem::transmute(cuda.find("cuImportExternalSemaphore"));
        let tables = function!(cuda, "cuGetExportTable", fn(*mut Handle, *const u8));
        let map =
            function!(cuda, "cuExternalMemoryGetMappedBuffer", fn(*mut u64, Handle, *const u64));
        let register = function!(cuda, "cuMemHostRegister_v2", fn(Handle, usize, c_uint));
        let address = function!(cuda, "cuMemHostGetDevicePointer_v2", fn(*mut u64, Handle, c_uint));
        type Graphics = unsafe extern "C" fn(c_uint, *const Handle, Handle) -> c_int;
        let graphics: Graphics = std::mem::transmute(cuda.find("cuGraphicsMapResources"));
        let of_thread: Graphics = std::mem::transmute(cuda.find("cuGraphicsMapResources_ptsz"));
        [
            tables(&raw mut table, identity.as_ptr()),
            import(&raw mut memory, described.as_ptr()),
            map(&raw mut mapped, memory, described.as_ptr()),
            semaphores(&raw mut semaphore, described.as_ptr()),
            register(11 as Handle, 12, 13),
            address(&raw mut host, 11 as Handle, 14),
            graphics(1, &raw const resource, 22 as Handle),
            of_thread(1, &raw const resource, NULL),
            function!(cuda, "cuMemHostUnregister", fn(Handle))(11 as Handle),
            function!(cuda, "cuDestroyExternalMemory", fn(Handle))(memory),
        ]
    };
    // SAFETY: the driver for tests has an int there.
    let table = unsafe { table.cast::<c_int>().read() };
    println!("{results:?} {table} {} {mapped} {} {host}", memory as usize, semaphore as usize);
    pause();
    // SAFETY: as above.
    println!("signalled={}", unsafe {
        function!(
            cuda,
            "cuSignalExternalSemaphoresAsync",
            fn(*const Handle, Handle, c_uint, Handle)
        )(&raw const semaphore, 31 as Handle, 1, NULL)
    });
}

/// A context for graphics.
pub(crate) fn graphics() {
    let cuda = Cuda::load();
    assert_eq!(cuda.init(), 0);
    let mut context = NULL;
    // SAFETY: as declared.
    let made = unsafe {
        function!(cuda, "cuGLCtxCreate_v2", fn(*mut Handle, c_uint, c_int))(&raw mut context, 3, 0)
    };
    println!("graphics={made}");
    pause();
}

pub(crate) fn pool(place: &str) {
    let cuda = Cuda::start();
    // CUmemPoolProps: pinned, descriptors, location 0 of that kind; the rest is zero.
    let kind = place.parse().expect("a number");
    let properties: [c_int; 24] =
        std::array::from_fn(|at| [1, 1, kind, 0].get(at).copied().unwrap_or(0));
    let (mut pool, mut address) = (NULL, 0_u64);
    // SAFETY: as declared.
    unsafe {
        let make = function!(cuda, "cuMemPoolCreate", fn(*mut Handle, *const c_int));
        assert_eq!(make(&raw mut pool, properties.as_ptr()), 0);
        let allocate =
            function!(cuda, "cuMemAllocFromPoolAsync", fn(*mut u64, usize, Handle, Handle));
        println!("allocate={}", allocate(&raw mut address, 100 << 20, pool, NULL));
    }
    pause();
}

pub(crate) fn symbols() {
    let cuda = Cuda::load();
    for function in acb_cuda_abi::FUNCTIONS {
        assert_eq!(owner(cuda.find(function.symbol)), format!("interposer {}", function.symbol));
    }
    println!("found={}", acb_cuda_abi::FUNCTIONS.len());
}

pub(crate) fn unsupported() {
    let cuda = Cuda::load();
    // SAFETY: as declared; the driver for tests has no such function.
    println!("result={}", unsafe {
        function!(cuda, "cuDeviceGetP2PAttribute", fn(Handle, c_int, c_int, c_int))(NULL, 0, 0, 0)
    });
}
