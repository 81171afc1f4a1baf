//! CUDA programs to which something happens beside their calls: signals, cancelled threads, forks, closed descriptors.
#![allow(unsafe_code)] // FFI: CUDA programs call C functions.

use crate::client::{Cuda, Handle, NULL, function, pause};
use std::ffi::{CString, c_char, c_int, c_uint};

/// A call that waits for the GPU is interrupted by a signal handler that never returns.
pub(crate) fn stuck_call() {
    use std::os::unix::thread::JoinHandleExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    static STUCK: AtomicBool = AtomicBool::new(false);
    extern "C" fn never_returns(_: c_int) {
        STUCK.store(true, Ordering::SeqCst);
        loop {
            // SAFETY: pause(2) may be called in a handler.
            unsafe { libc::pause() };
        }
    }
    let cuda = std::sync::Arc::new(Cuda::start());
    let handler = never_returns as extern "C" fn(c_int);
    // SAFETY: the handler calls nothing but what a handler may call.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    let theirs = cuda.clone();
    let waiter = std::thread::spawn(move || theirs.launch(1, NULL));
    pause();
    // SAFETY: the thread lives, for nobody lets it through the gate.
    unsafe { libc::pthread_kill(waiter.as_pthread_t(), libc::SIGUSR1) };
    while !STUCK.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    assert_eq!(cuda.synchronize(), 0);
    println!("launch={}", cuda.launch(2, NULL));
}

/// A thread is cancelled while it waits at the gate, and another in the middle of a call.
pub(crate) fn cancel() {
    let cuda = Cuda::start();
    let driver = std::env::var("ACB_DRIVER").expect("the driver's path");
    let driver = CString::new(driver).expect("no NUL");
    // SAFETY: a path that ends in NUL.
    let library = unsafe { libc::dlopen(driver.as_ptr(), libc::RTLD_NOW) } as usize;
    let driver = Cuda { library };
    let memset = cuda.find("cuMemsetD8_v2");
    for _ in 0..2 {
        // SAFETY: as declared in the driver for tests.
        let ended = unsafe { function!(driver, "dummyCancel", fn(Handle, c_int))(memset, 100) };
        println!("cancelled={ended}");
        pause();
    }
    println!("launch={}", cuda.launch(0, NULL));
    pause();
}

/// Closes every descriptor but the standard ones, as daemons do, and opens files instead.
pub(crate) fn close_all(folder: &str) {
    let cuda = Cuda::start();
    assert_eq!(cuda.launch(0, NULL), 0);
    pause();
    // SAFETY: nothing of this program uses descriptors from 3 on.
    unsafe { libc::close_range(3, c_uint::MAX, 0) };
    let mut files: Vec<_> = Vec::new();
    for n in 0..1020 {
        let options = std::fs::OpenOptions::new().create(true).append(true).to_owned();
        files.extend(options.open(format!("{folder}/{n}")));
    }
    pause();
    assert_eq!(cuda.launch(0, NULL), 0);
    pause();
    for file in &files {
        assert_eq!(file.metadata().expect("it is open").len(), 0, "a file was written to");
    }
}

/// A thread is in cuInit when another forks; the child tries CUDA.
pub(crate) fn fork_while_starting() {
    std::thread::scope(|scope| {
        scope.spawn(|| println!("parent={}", Cuda::load().init()));
        pause();
        // SAFETY: the child does what programs do in children, and leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let line = format!("child={}\n", Cuda::load().init());
            // SAFETY: plain system calls.
            unsafe {
                libc::write(1, line.as_ptr().cast(), line.len());
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        pause();
    });
}

/// `before`: the child of a process that never used CUDA uses it. `after`: that of one that did.
pub(crate) fn fork(when: &str) {
    let cuda = Cuda::load();
    if when == "after" {
        assert_eq!(cuda.init(), 0);
    }
    // SAFETY: the child does what programs do in children, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut count = 0;
        // SAFETY: as declared.
        let counted =
            unsafe { function!(cuda, "cuDeviceGetCount", fn(*mut c_int))(&raw mut count) };
        let mut context = NULL;
        // SAFETY: as declared.
        let made = unsafe {
            function!(cuda, "cuDevicePrimaryCtxRetain", fn(*mut Handle, c_int))(&raw mut context, 0)
        };
        let results = [counted, cuda.init(), made, cuda.launch(0, NULL), cuda.allocate(1).0];
        let (mut version, mut name) = (0, std::ptr::null::<c_char>());
        // SAFETY: as declared.
        let answered = unsafe {
            [
                function!(cuda, "cuDriverGetVersion", fn(*mut c_int))(&raw mut version),
                function!(cuda, "cuGetErrorName", fn(c_int, *mut *const c_char))(2, &raw mut name),
                function!(cuda, "cuGetErrorString", fn(c_int, *mut *const c_char))(
                    2,
                    &raw mut name,
                ),
            ]
        };
        let line = format!("child={results:?} without={answered:?} {}\n", version > 0);
        // SAFETY: plain system calls; the harness's stdout may be locked by a thread that is not here.
        unsafe {
            libc::write(1, line.as_ptr().cast(), line.len());
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0, "the child died");
    if when == "after" {
        println!("parent={}", cuda.init());
        pause();
    }
}
