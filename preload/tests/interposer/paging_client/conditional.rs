//! A graph with conditional nodes: what is done is decided on the GPU, by numbers in memory that may have been moved meanwhile.
//!
//! ```text
//! look at flag ─► if: copy first to second │ else: fill second ─► look at rounds ─► while: step second, one round less
//! ```
//! The `while`'s body is captured, all else is made of nodes.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use super::content::{pattern, splitmix64};
use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::{c_int, c_uint, c_void};

/// `acb_condition` takes the third number from the word at the first, and sets the condition to what is left.
const PTX: &str = "\
.version 6.4\n.target sm_52\n.address_size 64\n\
.visible .entry acb_condition(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n\
.visible .entry acb_step(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) { ret; }\n\
.visible .entry acb_fill(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n\0";

const ADDEND: u64 = 11;
const FILL: u64 = 5;

struct Making<'a> {
    cuda: &'a Cuda,
    module: Handle,
    graph: Handle,
    /// The latest node.
    last: Handle,
}

/// Makes it executable; `numbers` are the flag and how many rounds are left.
pub(super) fn make(cuda: &Cuda, (first, bytes): (u64, usize), second: u64, numbers: u64) -> Handle {
    let module = cuda.module(PTX);
    let (mut graph, mut executable) = (NULL, NULL);
    // SAFETY: as declared.
    unsafe {
        let make = function!(cuda, "cuGraphCreate", fn(*mut Handle, c_uint));
        assert_eq!(make(&raw mut graph, 0), 0);
    }
    let words = bytes as u64 / 8;
    let mut outer = Making { cuda, module, graph, last: NULL };
    let (chosen, rounds) = (outer.condition(), outer.condition());
    outer.kernel(c"acb_condition", &mut [numbers, chosen, 0]);
    let [then, otherwise] = outer.conditional(chosen, 0);
    let mut body = Making { cuda, module, graph: then, last: NULL };
    println!("node={}", body.copy(first, second, bytes));
    let mut body = Making { cuda, module, graph: otherwise, last: NULL };
    body.kernel(c"acb_fill", &mut [second, words, FILL]);
    outer.kernel(c"acb_condition", &mut [numbers + 8, rounds, 0]);
    let [body] = outer.conditional(rounds, 1);
    println!("captured={}", capture(cuda, module, body, second, words, (numbers + 8, rounds)));
    // SAFETY: as declared.
    unsafe {
        let mut copy = NULL;
        let clone = function!(cuda, "cuGraphClone", fn(*mut Handle, Handle));
        println!("cloned={}", clone(&raw mut copy, graph));
        let instantiate =
            function!(cuda, "cuGraphInstantiateWithFlags", fn(*mut Handle, Handle, u64));
        println!("instantiated={}", instantiate(&raw mut executable, graph, 0));
    }
    executable
}

fn capture(
    cuda: &Cuda,
    module: Handle,
    body: Handle,
    second: u64,
    words: u64,
    (left, rounds): (u64, u64),
) -> c_int {
    let (stream, mut graph) = (cuda.stream(), NULL);
    let (mut step, mut condition) = ([second, words, ADDEND, 0], [left, rounds, 1]);
    // SAFETY: as declared; 2 is the relaxed mode. The kernels' parameters are 64 bits wide.
    unsafe {
        let begin = function!(
            cuda,
            "cuStreamBeginCaptureToGraph",
            fn(Handle, Handle, *const Handle, *const c_void, usize, c_uint)
        );
        assert_eq!(begin(stream, body, std::ptr::null(), std::ptr::null(), 0, 2), 0);
        let mut places = step.each_mut().map(|value| std::ptr::from_mut(value).cast());
        let kernel = cuda.kernel(module, c"acb_step");
        assert_eq!(cuda.launch_kernel(kernel, (64, 256), stream, places.as_mut_ptr()), 0);
        let mut places = condition.each_mut().map(|value| std::ptr::from_mut(value).cast());
        let kernel = cuda.kernel(module, c"acb_condition");
        assert_eq!(cuda.launch_kernel(kernel, (1, 1), stream, places.as_mut_ptr()), 0);
        function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle))(stream, &raw mut graph)
    }
}

impl Making<'_> {
    fn condition(&self) -> u64 {
        let (cuda, mut handle) = (self.cuda, 0);
        // SAFETY: as declared; NULL is the current context.
        unsafe {
            let make = function!(
                cuda,
                "cuGraphConditionalHandleCreate",
                fn(*mut u64, Handle, Handle, c_uint, c_uint)
            );
            assert_eq!(make(&raw mut handle, self.graph, NULL, 0, 1), 0);
        }
        handle
    }

    fn after(&self) -> Vec<Handle> {
        [self.last].into_iter().filter(|node| !node.is_null()).collect()
    }

    fn kernel(&mut self, name: &std::ffi::CStr, arguments: &mut [u64]) {
        let (cuda, after) = (self.cuda, self.after());
        let mut places: Vec<*mut c_void> =
            arguments.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        // CUDA_KERNEL_NODE_PARAMS: function, grid and block, shared memory, parameters.
        let function = cuda.kernel(self.module, name) as u64;
        let one = 1 | 1 << 32;
        let parameters: [u64; 9] =
            [function, one, one, one, 0, places.as_mut_ptr() as u64, 0, 0, 0];
        // SAFETY: as declared.
        unsafe {
            let add = function!(
                cuda,
                "cuGraphAddKernelNode_v2",
                fn(*mut Handle, Handle, *const Handle, usize, *const u64)
            );
            let (list, count) = (after.as_ptr(), after.len());
            let node = &raw mut self.last;
            assert_eq!(add(node, self.graph, list, count, parameters.as_ptr()), 0);
        }
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> c_int {
        // CUDA_MEMCPY3D: two sides of eleven words, then width, height and depth.
        let side = |address: u64| [0, 0, 0, 0, 2, 0, address, 0, 0, 0, 0];
        let shape: Vec<u64> =
            side(from).into_iter().chain(side(to)).chain([bytes as u64, 1, 1]).collect();
        let (cuda, mut context) = (self.cuda, NULL);
        // SAFETY: as declared.
        unsafe {
            assert_eq!(function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context), 0);
            let add = function!(
                cuda,
                "cuGraphAddMemcpyNode",
                fn(*mut Handle, Handle, *const Handle, usize, *const u64, Handle)
            );
            add(&raw mut self.last, self.graph, std::ptr::null(), 0, shape.as_ptr(), context)
        }
    }

    /// A node of this kind; its bodies.
    fn conditional<const BODIES: usize>(&mut self, condition: u64, kind: u64) -> [Handle; BODIES] {
        // CUgraphNodeParams: 13, 12 bytes; then CUDA_CONDITIONAL_NODE_PARAMS: handle, kind and number of bodies, these, context.
        let mut parameters = [0_u64; 32];
        parameters[0] = 13;
        (parameters[2], parameters[3]) = (condition, kind | (BODIES as u64) << 32);
        let (cuda, after) = (self.cuda, self.after());
        // SAFETY: as declared; the driver has as many bodies to show.
        unsafe {
            let add = function!(
                cuda,
                "cuGraphAddNode",
                fn(*mut Handle, Handle, *const Handle, usize, *mut u64)
            );
            let (list, count) = (after.as_ptr(), after.len());
            let node = &raw mut self.last;
            assert_eq!(add(node, self.graph, list, count, parameters.as_mut_ptr()), 0);
            (parameters[4] as *const [Handle; BODIES]).read()
        }
    }
}

/// Sets the flag and the rounds.
pub(super) fn choose(cuda: &Cuda, numbers: u64, flag: u64, rounds: u64) -> c_int {
    let words = [flag, rounds];
    // SAFETY: as declared.
    unsafe {
        let write = function!(cuda, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize));
        write(numbers, words.as_ptr().cast(), 16)
    }
}

/// Looks for what a run with these leaves; the first allocation has that pattern.
pub(super) fn check(
    cuda: &Cuda,
    (second, bytes): (u64, usize),
    numbers: u64,
    (seed, flag, rounds): (u64, u64, u64),
) {
    let (mut words, mut left) = (vec![0_u64; bytes / 8], [9_u64; 2]);
    // SAFETY: as declared; the vector has that many bytes.
    unsafe {
        let read = function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize));
        assert_eq!(read(words.as_mut_ptr().cast(), second, bytes), 0);
        assert_eq!(read(left.as_mut_ptr().cast(), numbers, 16), 0);
    }
    let right = |i: u64| {
        let first = if flag != 0 { pattern(seed, i) } else { splitmix64(FILL.wrapping_add(i)) };
        let step = |value: u64| value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(ADDEND);
        (0..rounds).fold(first, |value, _| step(value))
    };
    let wrong = words.iter().zip(0..).filter(|(word, i)| **word != right(*i)).count();
    println!("left={} wrong={wrong}", left[1]);
}
