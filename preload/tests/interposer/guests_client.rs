//! CUDA programs that leave little room for whoever is a guest in them.
#![allow(unsafe_code)] // FFI: CUDA programs call C functions.

use crate::client::{Cuda, Handle, NULL, function, pause};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

/// What glibc lets nobody go below (PTHREAD_STACK_MIN).
const SMALLEST_STACK: usize = 16 << 10;

/// As many threads as asked for, with the smallest stacks that there are, wait for the GPU at once.
pub(crate) fn crowd(threads: &str) {
    let cuda = Cuda::start();
    let mut context = NULL;
    // SAFETY: as declared.
    let got = unsafe { function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context) };
    assert_eq!(got, 0);
    let context = context as usize;
    let launched = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.parse().expect("a number") {
            let work = || {
                // SAFETY: as declared; the context lives until the end.
                let set = unsafe { function!(cuda, "cuCtxSetCurrent", fn(Handle))(context as _) };
                let works = set == 0 && cuda.launch(0, NULL) == 0;
                launched.fetch_add(usize::from(works), Ordering::Relaxed);
            };
            Builder::new().stack_size(SMALLEST_STACK).spawn_scoped(scope, work).expect("a thread");
        }
        pause();
    });
    println!("launched={}", launched.into_inner());
}

/// The driver is opened and closed over and over, by name, before and after cuInit.
pub(crate) fn reopen() {
    let close = |cuda: Cuda| {
        // SAFETY: it was opened, and nothing of it is used any more.
        unsafe { libc::dlclose(cuda.library as *mut _) };
    };
    (0..100).for_each(|_| close(Cuda::load()));
    let cuda = Cuda::start();
    assert_eq!(cuda.launch(0, NULL), 0);
    close(cuda);
    (0..100).for_each(|_| close(Cuda::load()));
    println!("launch={}", Cuda::load().launch(0, NULL));
}

/// Opens a library; what it does then, its constructor does.
pub(crate) fn open(path: &str) {
    let _cuda = Cuda::start();
    let path = std::ffi::CString::new(path).expect("a path");
    // SAFETY: a library built for this.
    assert!(!unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) }.is_null());
}

/// Threads start other programs while one launches kernels.
pub(crate) fn spawn() {
    let cuda = Cuda::start();
    assert_eq!(cuda.launch(0, NULL), 0);
    let busy = AtomicUsize::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert!(Command::new("true").status().expect("it starts").success());
                }
                busy.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while busy.load(Ordering::SeqCst) > 0 {
            assert_eq!(cuda.launch(0, NULL), 0);
        }
    });
    println!("launch={}", cuda.launch(0, NULL));
}
