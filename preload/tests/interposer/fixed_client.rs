//! A CUDA program for the tests of memory that stays where it is: graphs' own, variables of code, heaps.
//!
//! It does what a line of words says, and prints the driver's answers. `[` and `]` begin and end a capture into the graph, `A64`
//! allocates 64 MiB in between, `F0` frees the first allocation of the graph's there. `a64` adds such a node by hand (`n64` by
//! the call for nodes of any kind), `f0` and `N0` likewise; each stands behind the one before. `i` makes the graph executable, `r`
//! runs it and waits, `d` destroys the graph, `x` the executable one. `v` moves it into a new graph, which takes its place. `H` in a
//! capture waits until `y`, which then waits for the stream; `R` runs without waiting; `g` tells how many MiB the driver has for graphs. `m8` loads a module with 8 MiB of variables (`m8k`: KiB), `M` unloads
//! it; `l8` and `L` likewise a library; `p8`, `P8` load a module and a library out of a compressed container, `u8`, `U8` out of one
//! that only this driver can read; `c` makes another context on the device, `C` destroys it. `h64` sets the heap to 64 MiB,
//! `q2` the queue of printf, `s8192` the stacks to 8192 bytes. `Y8` makes an array of 8 MiB with all smaller
//! levels, `Z` destroys it. `.` pauses.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, each_word, function};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

/// What waits in a stream may go on.
static LET_GO: AtomicBool = AtomicBool::new(false);

pub(crate) fn play(words: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let mut program = Program {
        cuda,
        stream,
        graph: NULL,
        executable: NULL,
        last: NULL,
        allocations: Vec::new(),
        module: NULL,
        library: NULL,
        context: NULL,
        mipmap: NULL,
    };
    each_word(words, |what, rest| program.step(what, rest));
}

/// What an image of code is written in.
enum Form {
    Text,
    /// A container, compressed as NVIDIA's tools do it.
    Packed,
    /// In a way that nobody but the software GPU knows.
    Later,
}

impl Form {
    fn of(self, text: String) -> Vec<u8> {
        let (flags, content) = match self {
            Form::Text => return text.into_bytes(),
            Form::Packed => (1_u64 << 13, lz4_flex::block::compress(text.as_bytes())),
            Form::Later => (1 << 40, text.bytes().map(|byte| !byte).collect()),
        };
        // Kind and 0x101, bytes of the head; bytes of the content, as it is; version and GPU; name; flags; unpacked bytes.
        let mut entry = vec![0; 64];
        entry[..8].copy_from_slice(&[1, 0, 1, 1, 64, 0, 0, 0]);
        entry[8..16].copy_from_slice(&(content.len() as u64).to_le_bytes());
        entry[16..20].copy_from_slice(&(content.len() as u32).to_le_bytes());
        entry[28] = 52;
        entry[40..48].copy_from_slice(&flags.to_le_bytes());
        entry[56..64].copy_from_slice(&(text.len() as u64).to_le_bytes());
        entry.extend(content);
        let mut image = vec![0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0];
        image.extend((entry.len() as u64).to_le_bytes());
        image.extend(entry);
        image
    }
}

struct Program {
    cuda: Cuda,
    stream: Handle,
    graph: Handle,
    executable: Handle,
    /// The graph's latest node.
    last: Handle,
    allocations: Vec<u64>,
    module: Handle,
    library: Handle,
    context: Handle,
    mipmap: Handle,
}

impl Program {
    fn step(&mut self, what: &str, rest: &str) -> c_int {
        let number = || rest.parse::<usize>().expect("a number");
        let bytes = || match rest.strip_suffix('k') {
            Some(number) => number.parse::<usize>().expect("a number") << 10,
            None => number() << 20,
        };
        match what {
            "[" => self.capture(true),
            "]" => self.capture(false),
            "A" => self.allocate_captured(bytes()),
            "F" => self.free_captured(number()),
            "a" => self.allocate(bytes(), false),
            "n" => self.allocate(bytes(), true),
            "f" => self.free(number(), false),
            "N" => self.free(number(), true),
            "i" => self.instantiate(),
            "r" => match self.launch() {
                0 => self.cuda.synchronize(),
                refused => refused,
            },
            "R" => self.launch(),
            "H" => self.hold_captured(),
            "y" => self.let_go(),
            "g" => self.reserved(),
            "v" => self.move_into_another(),
            "d" => self.destroy(),
            "x" => self.destroy_executable(),
            "m" | "l" => self.load(what == "l", Form::Text, bytes()),
            "p" | "P" => self.load(what == "P", Form::Packed, bytes()),
            "u" | "U" => self.load(what == "U", Form::Later, bytes()),
            "M" | "L" => self.unload(what == "L"),
            "c" => self.make_context(),
            "C" => self.destroy_context(),
            "h" => self.limit(2, bytes()),
            "q" => self.limit(1, bytes()),
            "s" => self.limit(0, number()),
            "Y" => self.make_mipmap(bytes()),
            "Z" => self.destroy_mipmap(),
            other => panic!("no word {other}"),
        }
    }

    fn capture(&mut self, begin: bool) -> c_int {
        let (cuda, stream) = (&self.cuda, self.stream);
        // SAFETY: as declared; 2 is the relaxed mode.
        unsafe {
            match begin {
                true => function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_uint))(stream, 2),
                false => {
                    let end = function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle));
                    end(stream, &raw mut self.graph)
                }
            }
        }
    }

    fn allocate_captured(&mut self, bytes: usize) -> c_int {
        let (cuda, mut address) = (&self.cuda, 0);
        // SAFETY: as declared.
        let result = unsafe {
            let allocate = function!(cuda, "cuMemAllocAsync", fn(*mut u64, usize, Handle));
            allocate(&raw mut address, bytes, self.stream)
        };
        self.allocations.push(address);
        result
    }

    fn free_captured(&self, index: usize) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            function!(cuda, "cuMemFreeAsync", fn(u64, Handle))(self.allocations[index], self.stream)
        }
    }

    fn allocate(&mut self, bytes: usize, of_any_kind: bool) -> c_int {
        // CUgraphNodeParams: kind, 12 bytes; then CUDA_MEM_ALLOC_NODE_PARAMS: pinned memory of device 0, 88 bytes of properties,
        // who may use it, how many, bytes, address.
        let mut parameters = [0_u64; 32];
        parameters[0] = 10;
        (parameters[2], parameters[3]) = (1, 1);
        parameters[2 + 13] = bytes as u64;
        let place = 2 + 14;
        let result = self.add(of_any_kind, &mut parameters, |cuda, node, graph, after, inner| {
            // SAFETY: as declared.
            unsafe {
                let add = function!(
                    cuda,
                    "cuGraphAddMemAllocNode",
                    fn(*mut Handle, Handle, *const Handle, usize, *mut u64)
                );
                add(node, graph, after.as_ptr(), after.len(), inner)
            }
        });
        self.allocations.push(parameters[place]);
        result
    }

    fn free(&mut self, index: usize, of_any_kind: bool) -> c_int {
        let mut parameters = [0_u64; 32];
        let address = self.allocations[index];
        (parameters[0], parameters[2]) = (11, address);
        self.add(of_any_kind, &mut parameters, |cuda, node, graph, after, _| {
            // SAFETY: as declared.
            unsafe {
                let add = function!(
                    cuda,
                    "cuGraphAddMemFreeNode",
                    fn(*mut Handle, Handle, *const Handle, usize, u64)
                );
                add(node, graph, after.as_ptr(), after.len(), address)
            }
        })
    }

    /// A node behind the latest one; `own` adds it by the call for its kind.
    fn add(
        &mut self,
        of_any_kind: bool,
        parameters: &mut [u64; 32],
        own: impl Fn(&Cuda, *mut Handle, Handle, &[Handle], *mut u64) -> c_int,
    ) -> c_int {
        let cuda = &self.cuda;
        let after: Vec<Handle> = [self.last].into_iter().filter(|node| !node.is_null()).collect();
        let mut node = NULL;
        // SAFETY: as declared; the parameters are those of a node, behind its kind.
        let result = unsafe {
            if self.graph.is_null() {
                let make = function!(cuda, "cuGraphCreate", fn(*mut Handle, c_uint));
                assert_eq!(make(&raw mut self.graph, 0), 0);
            }
            match of_any_kind {
                true => {
                    let add = function!(
                        cuda,
                        "cuGraphAddNode",
                        fn(*mut Handle, Handle, *const Handle, usize, *mut u64)
                    );
                    let (list, count) = (after.as_ptr(), after.len());
                    add(&raw mut node, self.graph, list, count, parameters.as_mut_ptr())
                }
                false => {
                    own(cuda, &raw mut node, self.graph, &after, parameters.as_mut_ptr().add(2))
                }
            }
        };
        if result == 0 {
            self.last = node;
        }
        result
    }

    fn instantiate(&mut self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            let make = function!(cuda, "cuGraphInstantiateWithFlags", fn(*mut Handle, Handle, u64));
            make(&raw mut self.executable, self.graph, 0)
        }
    }

    fn launch(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            function!(cuda, "cuGraphLaunch", fn(Handle, Handle))(self.executable, self.stream)
        }
    }

    fn hold_captured(&self) -> c_int {
        extern "C" fn hold(_: *mut c_void) {
            while !LET_GO.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            type Held = extern "C" fn(*mut c_void);
            let call = function!(cuda, "cuLaunchHostFunc", fn(Handle, Held, *mut c_void));
            call(self.stream, hold, NULL)
        }
    }

    fn let_go(&self) -> c_int {
        LET_GO.store(true, Ordering::SeqCst);
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuStreamSynchronize", fn(Handle))(self.stream) }
    }

    fn reserved(&self) -> c_int {
        let (cuda, mut bytes) = (&self.cuda, 0_u64);
        // SAFETY: as declared; 2: what is reserved now, a number of 64 bits.
        let result = unsafe {
            let ask = function!(cuda, "cuDeviceGetGraphMemAttribute", fn(c_int, c_uint, *mut u64));
            ask(0, 2, &raw mut bytes)
        };
        assert_eq!(result, 0);
        (bytes >> 20) as c_int
    }

    fn move_into_another(&mut self) -> c_int {
        let cuda = &self.cuda;
        let (mut parent, mut node) = (NULL, NULL);
        // Kind 4, 12 bytes; the child, and that it is moved.
        let mut parameters = [0_u64; 32];
        (parameters[0], parameters[2], parameters[3]) = (4, self.graph as u64, 1);
        // SAFETY: as declared.
        let result = unsafe {
            let make = function!(cuda, "cuGraphCreate", fn(*mut Handle, c_uint));
            assert_eq!(make(&raw mut parent, 0), 0);
            let add = function!(
                cuda,
                "cuGraphAddNode",
                fn(*mut Handle, Handle, *const Handle, usize, *mut u64)
            );
            add(&raw mut node, parent, std::ptr::null(), 0, parameters.as_mut_ptr())
        };
        self.graph = parent;
        result
    }

    fn destroy(&mut self) -> c_int {
        let (cuda, graph) = (&self.cuda, std::mem::replace(&mut self.graph, NULL));
        self.last = NULL;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuGraphDestroy", fn(Handle))(graph) }
    }

    fn destroy_executable(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuGraphExecDestroy", fn(Handle))(self.executable) }
    }

    fn load(&mut self, as_library: bool, form: Form, bytes: usize) -> c_int {
        let text = format!(
            ".version 6.4\n.target sm_52\n.address_size 64\n.visible .global .align 8 .b8 table[{bytes}];\n\
             .visible .entry acb_nop() {{ ret; }}\n\0"
        );
        let image = form.of(text);
        let (cuda, image) = (&self.cuda, image.as_ptr().cast::<c_void>());
        // SAFETY: as declared; the text ends with a zero, a container says its length.
        unsafe {
            match as_library {
                false => {
                    let load = function!(cuda, "cuModuleLoadData", fn(*mut Handle, *const c_void));
                    load(&raw mut self.module, image)
                }
                true => {
                    let load = function!(
                        cuda,
                        "cuLibraryLoadData",
                        fn(
                            *mut Handle,
                            *const c_void,
                            Handle,
                            Handle,
                            c_uint,
                            Handle,
                            Handle,
                            c_uint,
                        )
                    );
                    load(&raw mut self.library, image, NULL, NULL, 0, NULL, NULL, 0)
                }
            }
        }
    }

    fn unload(&self, library: bool) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            match library {
                false => function!(cuda, "cuModuleUnload", fn(Handle))(self.module),
                true => function!(cuda, "cuLibraryUnload", fn(Handle))(self.library),
            }
        }
    }

    fn make_context(&mut self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            let make = function!(cuda, "cuCtxCreate_v2", fn(*mut Handle, c_uint, c_int));
            make(&raw mut self.context, 0, 0)
        }
    }

    fn destroy_context(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuCtxDestroy_v2", fn(Handle))(self.context) }
    }

    fn limit(&self, limit: c_uint, value: usize) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuCtxSetLimit", fn(c_uint, usize))(limit, value) }
    }

    fn make_mipmap(&mut self, bytes: usize) -> c_int {
        let (cuda, width) = (&self.cuda, 1024);
        // CUDA_ARRAY3D_DESCRIPTOR: rows of elements of four words of 32 bits.
        let shape: [u64; 5] = [width, bytes as u64 / 16 / width, 0, 4 << 32 | 3, 0];
        // SAFETY: as declared.
        unsafe {
            let make =
                function!(cuda, "cuMipmappedArrayCreate", fn(*mut Handle, *const u64, c_uint));
            make(&raw mut self.mipmap, shape.as_ptr(), 11)
        }
    }

    fn destroy_mipmap(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuMipmappedArrayDestroy", fn(Handle))(self.mipmap) }
    }
}
