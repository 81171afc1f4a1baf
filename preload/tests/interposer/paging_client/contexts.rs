//! Contexts that come and go on one device, and threads that work in them.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use super::content::pattern;
use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::{c_int, c_uint, c_void};
use std::thread::JoinHandle;

pub(super) struct Contexts<'a> {
    cuda: &'a Cuda,
    /// In the order in which they were made.
    made: Vec<Handle>,
    threads: Vec<JoinHandle<c_int>>,
}

impl<'a> Contexts<'a> {
    pub(super) fn new(cuda: &'a Cuda) -> Self {
        Contexts { cuda, made: vec![current(cuda)], threads: Vec::new() }
    }

    /// A context that is current from now on.
    pub(super) fn make(&mut self) {
        let mut context = NULL;
        // SAFETY: as declared.
        unsafe {
            let create = function!(self.cuda, "cuCtxCreate_v2", fn(*mut Handle, c_uint, c_int));
            println!("made={}", create(&raw mut context, 0, 0));
        }
        self.made.push(context);
    }

    pub(super) fn choose(&self, index: usize) {
        // SAFETY: as declared.
        let result =
            unsafe { function!(self.cuda, "cuCtxSetCurrent", fn(Handle))(self.made[index]) };
        assert_eq!(result, 0);
    }

    pub(super) fn destroy(&self) {
        let context = current(self.cuda);
        // SAFETY: as declared.
        let result = unsafe { function!(self.cuda, "cuCtxDestroy_v2", fn(Handle))(context) };
        println!("destroyed={result}");
    }

    pub(super) fn attach(&self) {
        let mut context = NULL;
        // SAFETY: as declared.
        let result = unsafe {
            let attach = function!(self.cuda, "cuCtxAttach", fn(*mut Handle, c_uint));
            attach(&raw mut context, 0)
        };
        assert_eq!(context, current(self.cuda));
        println!("attached={result}");
    }

    pub(super) fn detach(&self) {
        let context = current(self.cuda);
        // SAFETY: as declared.
        let result = unsafe { function!(self.cuda, "cuCtxDetach", fn(Handle))(context) };
        println!("detached={result}");
    }

    /// Writes a pattern on a thread, in the context that is current here.
    pub(super) fn write_meanwhile(&mut self, address: u64, bytes: usize, seed: u64) {
        let words: Vec<u64> = (0..bytes as u64 / 8).map(|i| pattern(seed, i)).collect();
        // SAFETY: transmuted for a call as declared.
        let (choose, copy) = unsafe {
            let choose = function!(self.cuda, "cuCtxSetCurrent", fn(Handle));
            (choose, function!(self.cuda, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize)))
        };
        let context = current(self.cuda) as usize;
        self.threads.push(std::thread::spawn(move || {
            // SAFETY: as declared; the vector has that many bytes.
            unsafe {
                assert_eq!(choose(context as Handle), 0);
                copy(address, words.as_ptr().cast(), words.len() * 8)
            }
        }));
    }

    /// Waits for the threads.
    pub(super) fn end(self) {
        for thread in self.threads {
            println!("thread={}", thread.join().expect("it does not panic"));
        }
    }
}

fn current(cuda: &Cuda) -> Handle {
    let mut context = NULL;
    // SAFETY: as declared.
    let result = unsafe { function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context) };
    assert_eq!(result, 0);
    context
}
