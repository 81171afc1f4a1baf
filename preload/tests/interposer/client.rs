//! The programs that are interposed: each scenario is a small CUDA program.
//!
//! They print what they see, wait for a line on stdin where the test must have a say, and know
//! nothing of the interposer.
#![allow(unsafe_code)] // FFI: CUDA programs call C functions.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(crate) type Handle = *mut c_void;
pub(crate) const NULL: Handle = std::ptr::null_mut();

pub(crate) fn play(scenario: &str) {
    let (name, argument) = scenario.split_once(' ').unwrap_or((scenario, ""));
    match name {
        "init" => println!("cuInit={}", Cuda::load().init()),
        "init-often" => init_often(),
        "launch" => launch(argument),
        "launch-per-thread" => launch_per_thread(),
        "endless" => endless(),
        "cancel" => crate::process_client::cancel(),
        "stuck-call" => crate::process_client::stuck_call(),
        "crowd" => crate::guests_client::crowd(argument),
        "reopen" => crate::guests_client::reopen(),
        "open" => crate::guests_client::open(argument),
        "spawn" => crate::guests_client::spawn(),
        "capture" => capture(argument),
        "destroy-busy" => destroy_busy(argument),
        "destroy-twice" => destroy_twice(),
        "literal" => literal(),
        "visible" => visible(argument),
        "close-all" => crate::process_client::close_all(argument),
        "fork-while-starting" => crate::process_client::fork_while_starting(),
        "streams" => streams(),
        "allocate" => allocate(argument),
        "paged" => crate::paging_client::play(argument),
        "between" => crate::between_client::play(argument),
        "fixed" => crate::fixed_client::play(argument),
        "pool" => crate::exports_client::pool(argument),
        "physical" => physical(),
        "green" => crate::exports_client::green(),
        "ways-out" => crate::exports_client::ways_out(),
        "graphics" => crate::exports_client::graphics(),
        "no-cuda" => {}
        "arguments" => crate::exports_client::arguments(),
        "addresses" => crate::exports_client::addresses(argument),
        "symbols" => crate::exports_client::symbols(),
        "unsupported" => crate::exports_client::unsupported(),
        "fork" => crate::process_client::fork(argument),
        "bench" => bench(),
        other => panic!("no scenario {other}"),
    }
}

/// Waits for the test, which can count that among the driver's calls.
pub(crate) fn pause() {
    println!("paused");
    if let Some(path) = std::env::var_os("DUMMY_LOG") {
        let mut log = OpenOptions::new().create(true).append(true).open(path).expect("the log");
        log.write_all(b"paused\n").expect("the log is written");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("a line");
}

/// Does what each word says and prints the driver's answers; `.` pauses.
pub(crate) fn each_word(words: &str, mut step: impl FnMut(&str, &str) -> c_int) {
    for word in words.split(' ') {
        let (what, rest) = word.split_at(1);
        if what == "." {
            pause();
        } else {
            println!("{what}={}", step(what, rest));
        }
    }
    println!("end");
}

pub(crate) struct Cuda {
    pub(crate) library: usize,
}

/// A function of the driver; the signature is that of its header.
macro_rules! function {
    ($cuda:expr, $name:literal, fn($($kind:ty),* $(,)?)) => {{
        let address = $cuda.find($name);
        assert!(!address.is_null(), "{} is missing", $name);
        std::mem::transmute::<$crate::client::Handle, unsafe extern "C" fn($($kind),*) -> std::ffi::c_int>(address)
    }};
}

pub(crate) use function;

impl Cuda {
    pub(crate) fn load() -> Self {
        // SAFETY: a name that ends in NUL.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "libcuda.so.1 cannot be opened");
        Cuda { library: library as usize }
    }

    pub(crate) fn find(&self, name: &str) -> Handle {
        let name = CString::new(name).expect("no NUL");
        // SAFETY: an open library and a name that ends in NUL.
        unsafe { libc::dlsym(self.library as Handle, name.as_ptr()) }
    }

    pub(crate) fn init(&self) -> c_int {
        // SAFETY: as declared.
        unsafe { function!(self, "cuInit", fn(c_uint))(0) }
    }

    /// Initialised, with a current context.
    pub(crate) fn start() -> Self {
        let cuda = Cuda::load();
        assert_eq!(cuda.init(), 0, "cuInit");
        let mut context = NULL;
        // SAFETY: as declared.
        let made = unsafe {
            function!(cuda, "cuCtxCreate_v2", fn(*mut Handle, c_uint, c_int))(
                &raw mut context,
                0,
                0,
            )
        };
        assert_eq!(made, 0, "cuCtxCreate");
        cuda
    }

    /// Code as text, which ends in NUL.
    pub(crate) fn module(&self, ptx: &str) -> Handle {
        assert!(ptx.ends_with('\0'));
        let mut module = NULL;
        // SAFETY: as declared.
        unsafe {
            let load = function!(self, "cuModuleLoadData", fn(*mut Handle, *const c_void));
            assert_eq!(load(&raw mut module, ptx.as_ptr().cast()), 0);
        }
        module
    }

    pub(crate) fn kernel(&self, module: Handle, name: &CStr) -> Handle {
        let mut kernel = NULL;
        // SAFETY: as declared.
        unsafe {
            let find =
                function!(self, "cuModuleGetFunction", fn(*mut Handle, Handle, *const c_char));
            assert_eq!(find(&raw mut kernel, module, name.as_ptr()), 0);
        }
        kernel
    }

    /// Runs a kernel that takes three numbers of 64 bits, and waits for it.
    pub(crate) fn run_kernel(&self, ptx: &str, name: &CStr, mut numbers: [u64; 3]) -> c_int {
        let kernel = self.kernel(self.module(ptx), name);
        let mut places = numbers.each_mut().map(|number| std::ptr::from_mut(number).cast());
        // SAFETY: these are the kernel's parameters.
        let launched = unsafe { self.launch_kernel(kernel, (64, 256), NULL, places.as_mut_ptr()) };
        if launched != 0 { launched } else { self.synchronize() }
    }

    /// With a grid and blocks of one dimension.
    ///
    /// # Safety
    /// The kernel takes such parameters.
    pub(crate) unsafe fn launch_kernel(
        &self,
        kernel: Handle,
        (blocks, threads): (c_uint, c_uint),
        stream: Handle,
        parameters: *mut Handle,
    ) -> c_int {
        let shape = [blocks, 1, 1, threads, 1, 1, 0];
        // SAFETY: the caller's.
        unsafe { self.launch_as("cuLaunchKernel", kernel, shape, stream, (parameters, NULL)) }
    }

    /// # Safety
    /// As the kernel and its parameters say; the driver for tests looks at numbers alone.
    unsafe fn launch_as(
        &self,
        symbol: &str,
        kernel: Handle,
        [a, b, c, d, e, f, shared]: [c_uint; 7],
        stream: Handle,
        (parameters, extra): (*mut Handle, Handle),
    ) -> c_int {
        let address = self.find(symbol);
        assert!(!address.is_null());
        type Launch = unsafe extern "C" fn(
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
        ) -> c_int;
        // SAFETY: the signature is that of the driver's header; the rest is the caller's.
        unsafe {
            let call: Launch = std::mem::transmute(address);
            call(kernel, a, b, c, d, e, f, shared, stream, parameters, extra)
        }
    }

    fn launch_numbers(&self, symbol: &str, milliseconds: u32, stream: Handle) -> c_int {
        let shape = [milliseconds, 2, 3, 4, 5, 6, 7];
        let rest = (std::ptr::without_provenance_mut(8), 9 as Handle);
        // SAFETY: to the driver for tests.
        unsafe { self.launch_as(symbol, 10 as Handle, shape, stream, rest) }
    }

    pub(crate) fn launch(&self, milliseconds: u32, stream: Handle) -> c_int {
        self.launch_numbers("cuLaunchKernel", milliseconds, stream)
    }

    pub(crate) fn synchronize(&self) -> c_int {
        // SAFETY: as declared.
        unsafe { function!(self, "cuCtxSynchronize", fn())() }
    }

    fn memset(&self) -> c_int {
        // SAFETY: as declared.
        unsafe { function!(self, "cuMemsetD8_v2", fn(u64, u8, usize))(0, 0, 0) }
    }

    pub(crate) fn allocate(&self, bytes: usize) -> (c_int, u64) {
        let mut address = 0u64;
        // SAFETY: as declared.
        let result = unsafe {
            function!(self, "cuMemAlloc_v2", fn(*mut u64, usize))(&raw mut address, bytes)
        };
        (result, address)
    }

    pub(crate) fn free(&self, address: u64) -> c_int {
        // SAFETY: as declared.
        unsafe { function!(self, "cuMemFree_v2", fn(u64))(address) }
    }

    pub(crate) fn stream(&self) -> Handle {
        let mut stream = NULL;
        // SAFETY: as declared.
        let made = unsafe {
            function!(self, "cuStreamCreate", fn(*mut Handle, c_uint))(&raw mut stream, 0)
        };
        assert_eq!(made, 0);
        stream
    }
}

fn init_often() {
    let cuda = Cuda::load();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| println!("cuInit={}", cuda.init()));
        }
    });
    println!("again={}", cuda.init());
}

/// Launches of the given lengths, a pause after each.
fn launch(lengths: &str) {
    let cuda = Cuda::start();
    for milliseconds in lengths.split(' ') {
        println!("launch={}", cuda.launch(milliseconds.parse().expect("a number"), NULL));
        cuda.synchronize();
        pause();
    }
}

fn launch_per_thread() {
    let cuda = Cuda::start();
    println!("launch={}", cuda.launch_numbers("cuLaunchKernel_ptsz", 300, NULL));
    pause();
}

/// A kernel that ends only when this program sets its flag, which is a submission too.
fn endless() {
    let cuda = Cuda::start();
    assert_eq!(cuda.launch(u32::MAX, NULL), 0);
    pause();
    println!("memset={}", cuda.memset());
    cuda.synchronize();
    pause();
}

fn capture(launches: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    assert_eq!(cuda.launch(0, stream), 0);
    // SAFETY: as declared.
    unsafe {
        assert_eq!(function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_int))(stream, 0), 0);
        pause();
        if !launches.is_empty() {
            assert_eq!(cuda.launch(0, stream), 0);
            // A second beginning fails, and leaves the capture as it is.
            let begin = function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_int));
            assert_ne!(begin(stream, 0), 0);
        }
        let mut graph = NULL;
        assert_eq!(
            function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle))(stream, &raw mut graph),
            0
        );
    }
    pause();
}

/// A stream or a context is destroyed while a kernel runs on it.
fn destroy_busy(what: &str) {
    let cuda = Cuda::start();
    // SAFETY: as declared.
    unsafe {
        match what {
            "stream" => {
                let stream = cuda.stream();
                assert_eq!(cuda.launch(500, stream), 0);
                assert_eq!(function!(cuda, "cuStreamDestroy_v2", fn(Handle))(stream), 0);
            }
            _ => {
                let mut context = NULL;
                let current = function!(cuda, "cuCtxGetCurrent", fn(*mut Handle));
                assert_eq!(current(&raw mut context), 0);
                assert_eq!(cuda.launch(500, NULL), 0);
                assert_eq!(function!(cuda, "cuCtxDestroy_v2", fn(Handle))(context), 0);
            }
        }
    }
    pause();
}

fn destroy_twice() {
    let cuda = Cuda::start();
    let mut context = NULL;
    // SAFETY: as declared.
    unsafe {
        let create = function!(cuda, "cuCtxCreate_v2", fn(*mut Handle, c_uint, c_int));
        assert_eq!(create(&raw mut context, 0, 0), 0);
        let destroy = function!(cuda, "cuCtxDestroy_v2", fn(Handle));
        assert_eq!(destroy(context), 0);
        assert_eq!(destroy(context), 201);
    }
    assert_eq!(cuda.launch(0, NULL), 0);
    cuda.synchronize();
    pause();
}

/// The program's own choice of a GPU lies in memory that cannot be written to.
fn literal() {
    static CHOICE: &CStr = c"CUDA_VISIBLE_DEVICES=GPU-99999999";
    // SAFETY: the string lives for ever, and putenv does not write to it.
    assert_eq!(unsafe { libc::putenv(CHOICE.as_ptr().cast_mut()) }, 0);
    println!("cuInit={}", Cuda::load().init());
}

/// The program's own choice of GPUs, if it has one, and what it finds of it after cuInit; likewise a program that it starts.
fn visible(choice: &str) {
    if !choice.is_empty() {
        let choice = CString::new(choice).expect("no NUL");
        let name = c"CUDA_VISIBLE_DEVICES";
        // SAFETY: strings that end in NUL; no other thread of this program looks at the environment.
        assert_eq!(unsafe { libc::setenv(name.as_ptr(), choice.as_ptr(), 1) }, 0);
    }
    let cuda = Cuda::load();
    assert_eq!(cuda.init(), 0);
    println!("after=[{}]", std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default());
    let child = std::process::Command::new("sh")
        .args(["-c", "echo \"child=[$CUDA_VISIBLE_DEVICES]\""])
        .env_remove("LD_PRELOAD")
        .output()
        .expect("a shell is installed");
    print!("{}", String::from_utf8_lossy(&child.stdout));
}

/// Streams are made, used and destroyed while the link asks about them, until it is enough.
fn streams() {
    let cuda = Cuda::start();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut context = NULL;
                // SAFETY: as declared.
                unsafe {
                    assert_eq!(
                        function!(cuda, "cuCtxCreate_v2", fn(*mut Handle, c_uint, c_int))(
                            &raw mut context,
                            0,
                            0
                        ),
                        0
                    );
                }
                while !enough.load(Ordering::Relaxed) {
                    let stream = cuda.stream();
                    assert_eq!(cuda.launch(0, stream), 0);
                    std::thread::sleep(std::time::Duration::from_micros(300));
                    // SAFETY: as declared.
                    let destroyed =
                        unsafe { function!(cuda, "cuStreamDestroy_v2", fn(Handle))(stream) };
                    assert_eq!(destroyed, 0);
                }
                // SAFETY: as declared.
                assert_eq!(unsafe { function!(cuda, "cuCtxDestroy_v2", fn(Handle))(context) }, 0);
            });
        }
        pause();
        enough.store(true, Ordering::Relaxed);
    });
    println!("done");
}

/// Allocations of the given sizes in MiB; `-` frees the last, `?` asks what is free, `.` pauses.
fn allocate(words: &str) {
    let cuda = Cuda::start();
    let mut held = Vec::new();
    for word in words.split(' ') {
        match word {
            "-" => println!("free={}", cuda.free(held.pop().expect("something is held"))),
            "." => pause(),
            "?" => {
                let (mut free, mut total) = (0usize, 0usize);
                // SAFETY: as declared; NULL is legal for either.
                unsafe {
                    let info = function!(cuda, "cuMemGetInfo_v2", fn(*mut usize, *mut usize));
                    assert_eq!(info(&raw mut free, std::ptr::null_mut()), 0);
                    assert_eq!(info(std::ptr::null_mut(), &raw mut total), 0);
                    assert_eq!(info(std::ptr::null_mut(), std::ptr::null_mut()), 0);
                }
                println!("info={} {}", free >> 20, total >> 20);
            }
            size => {
                let (result, address) = cuda.allocate(size.parse::<usize>().expect("a size") << 20);
                println!("allocate={result}");
                if result == 0 {
                    held.push(address);
                }
            }
        }
    }
}

/// Physical memory: released while mapped, then unmapped.
fn physical() {
    let cuda = Cuda::start();
    // CUmemAllocationProp: pinned, on device 0; the rest is zero.
    let properties: [c_int; 16] = [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut handle = 0u64;
    // SAFETY: as declared.
    unsafe {
        let create = function!(cuda, "cuMemCreate", fn(*mut u64, usize, *const c_int, u64));
        assert_eq!(create(&raw mut handle, 64 << 20, properties.as_ptr(), 0), 0);
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        assert_eq!(map(0x1000_0000, 64 << 20, 0, handle, 0), 0);
        assert_eq!(function!(cuda, "cuMemRelease", fn(u64))(handle), 0);
        pause();
        assert_eq!(function!(cuda, "cuMemUnmap", fn(u64, usize))(0x1000_0000, 64 << 20), 0);
    }
    pause();
}

/// Nanoseconds of a call that the driver for tests answers at once.
fn bench() {
    let cuda = Cuda::start();
    type Launch = unsafe extern "C" fn(Handle, Handle) -> c_int;
    // SAFETY: as declared.
    let through: Launch = unsafe { std::mem::transmute(cuda.find("cuGraphLaunch")) };
    let path = CString::new(std::env::var("ACB_DRIVER").expect("set")).expect("no NUL");
    // SAFETY: the driver is open already; this is the same one.
    let direct: Launch = unsafe {
        let driver = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        std::mem::transmute(libc::dlsym(driver, c"cuGraphLaunch".as_ptr()))
    };
    let median = |call: Launch| {
        let mut rounds: Vec<f64> = (0..101)
            .map(|_| {
                let began = Instant::now();
                for _ in 0..10_000 {
                    // SAFETY: as declared; the driver for tests looks at nothing.
                    unsafe { call(std::hint::black_box(NULL), NULL) };
                }
                began.elapsed().as_nanos() as f64 / 10_000.0
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        rounds[50]
    };
    let (direct, through) = (median(direct), median(through));
    println!("direct={direct:.1} through={through:.1} added={:.1} ns", through - direct);
}
