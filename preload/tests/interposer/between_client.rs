//! A CUDA program for the tests of what processes share: it does what a line of words says, and prints the driver's answers.
//!
//! What is handed over lies in the folder that `ACB_TEST_FOLDER` names. `e` makes an event for other processes and hands it over, `E` opens
//! one that was. `r` records it in the stream, `s` has the stream wait for it, `y` waits itself, `q` asks whether it is over,
//! `d` destroys it. `h` puts a function into the stream that does not end before `H`.
//!
//! `p` makes a pool for other processes, `x` hands it over; `a64` allocates 64 MiB of it, `l` hands the latest allocation over. `P` and
//! `L` import the one and the other. `c` makes it the current pool of the device, `A4` allocates of that. `w7` writes pattern 7 into the
//! latest allocation in the stream, `v7` looks for it there; `f0` frees an allocation in the stream, `t` trims the pool, `D` destroys it,
//! `u` prints what is used and reserved of it. `m8` allocates 8 MiB by `cuMemAlloc`, `i` (`k8`: KiB), hands them over, `I` opens them (`J`: KiB), `C` closes them.
//! `F8` makes and maps 8 MiB for other machines and hands them over, `g8` imports and maps them. `.` pauses.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, each_word, function};
use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Handles of all kinds have so many bytes.
type Words = [u64; 8];

static MAY_END: AtomicBool = AtomicBool::new(false);

extern "C" fn waits(_: *mut c_void) {
    while !MAY_END.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

pub(crate) fn play(words: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let folder = PathBuf::from(std::env::var_os("ACB_TEST_FOLDER").expect("a folder"));
    let (event, pool, allocations) = (NULL, NULL, Vec::new());
    let mut program = Program { cuda, stream, folder, event, pool, allocations, child: None };
    each_word(words, |what, rest| program.step(what, rest));
}

struct Program {
    cuda: Cuda,
    stream: Handle,
    folder: PathBuf,
    event: Handle,
    pool: Handle,
    allocations: Vec<(u64, usize)>,
    /// A forked child ends with it.
    child: Option<std::io::PipeWriter>,
}

impl Program {
    fn step(&mut self, what: &str, rest: &str) -> c_int {
        let number = || rest.parse::<usize>().expect("a number");
        match what {
            "e" => self.make_event(),
            "E" => self.open_event(),
            "h" => self.wait_in_stream(),
            "H" => {
                MAY_END.store(true, Ordering::SeqCst);
                0
            }
            "r" | "s" | "y" | "q" | "d" => self.use_event(what),
            "p" => self.make_pool(),
            "x" => self.export_pool(),
            "P" => self.import_pool(),
            "a" => self.allocate(number() << 20, true),
            "A" => self.allocate(number() << 20, false),
            "c" => self.set_current(),
            "l" => self.export_pointer(),
            "L" => self.import_pointer(rest),
            "w" => self.write(number() as u8),
            "v" => self.verify(number() as u8),
            "f" => self.free(number()),
            "t" => self.trim(),
            "D" => self.destroy_pool(),
            "u" => self.levels(),
            "m" | "k" => {
                let bytes = number() << if what == "m" { 20 } else { 10 };
                let (result, address) = self.cuda.allocate(bytes);
                self.allocations.push((address, bytes));
                result
            }
            "F" => self.make_fabric(number() << 20),
            "g" => self.import_fabric(rest),
            "i" => self.share_memory(),
            "I" => self.open_memory(number() << 20),
            "J" => self.open_memory(number() << 10),
            "Y" => self.fork(),
            "X" => {
                self.child.take();
                0
            }
            "C" => self.close_memory(),
            other => panic!("no word {other}"),
        }
    }

    fn hand_over(&self, name: &str, words: Words) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        std::fs::write(self.folder.join(name), bytes).expect("the folder is writable");
    }

    fn handed_over(&self, name: &str) -> Words {
        let bytes = std::fs::read(self.folder.join(name)).expect("it was handed over");
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
        words
    }

    fn latest(&self) -> (u64, usize) {
        *self.allocations.last().expect("something is allocated")
    }

    // ------------------------------------------------------------ events

    fn make_event(&mut self) -> c_int {
        let (cuda, mut handle) = (&self.cuda, [0; 8]);
        // SAFETY: as declared; 6: without times, for other processes.
        let result = unsafe {
            let make = function!(cuda, "cuEventCreate", fn(*mut Handle, c_uint));
            // One that was not made for it is not handed over: CUDA_ERROR_INVALID_HANDLE.
            let take = function!(cuda, "cuIpcGetEventHandle", fn(*mut Words, Handle));
            assert_eq!(make(&raw mut self.event, 2), 0);
            assert_eq!(take(&raw mut handle, self.event), 400);
            assert_eq!(make(&raw mut self.event, 6), 0);
            take(&raw mut handle, self.event)
        };
        self.hand_over("event", handle);
        result
    }

    fn open_event(&mut self) -> c_int {
        let (cuda, handle) = (&self.cuda, self.handed_over("event"));
        // SAFETY: as declared.
        unsafe {
            let open = function!(cuda, "cuIpcOpenEventHandle", fn(*mut Handle, Words));
            open(&raw mut self.event, handle)
        }
    }

    fn use_event(&self, what: &str) -> c_int {
        let (cuda, stream, event) = (&self.cuda, self.stream, self.event);
        // SAFETY: as declared.
        unsafe {
            match what {
                "r" => function!(cuda, "cuEventRecord", fn(Handle, Handle))(event, stream),
                "s" => {
                    let wait = function!(cuda, "cuStreamWaitEvent", fn(Handle, Handle, c_uint));
                    wait(stream, event, 0)
                }
                "y" => function!(cuda, "cuEventSynchronize", fn(Handle))(event),
                "q" => function!(cuda, "cuEventQuery", fn(Handle))(event),
                _ => function!(cuda, "cuEventDestroy_v2", fn(Handle))(event),
            }
        }
    }

    fn wait_in_stream(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            let launch = function!(
                cuda,
                "cuLaunchHostFunc",
                fn(Handle, extern "C" fn(*mut c_void), *mut c_void)
            );
            launch(self.stream, waits, NULL)
        }
    }

    // ------------------------------------------------------------ pools

    fn make_pool(&mut self) -> c_int {
        // CUmemPoolProps: pinned, descriptors, on device 0; the rest is zero.
        let mut properties = [0_u32; 22];
        properties[..4].copy_from_slice(&[1, 1, 1, 0]);
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            let make = function!(cuda, "cuMemPoolCreate", fn(*mut Handle, *const u32));
            make(&raw mut self.pool, properties.as_ptr())
        }
    }

    /// The descriptor stays open, for others to take.
    fn export_pool(&self) -> c_int {
        let (cuda, mut descriptor): (_, c_int) = (&self.cuda, -1);
        // SAFETY: as declared; 1 is the type of descriptors.
        let result = unsafe {
            let export = function!(
                cuda,
                "cuMemPoolExportToShareableHandle",
                fn(*mut c_int, Handle, c_uint, u64)
            );
            export(&raw mut descriptor, self.pool, 1, 0)
        };
        let own = u64::from(std::process::id());
        self.hand_over("pool", [own, descriptor as u64, 0, 0, 0, 0, 0, 0]);
        result
    }

    fn import_pool(&mut self) -> c_int {
        let (cuda, [pid, number, ..]) = (&self.cuda, self.handed_over("pool"));
        // As good as one that came through a socket.
        let path = format!("/proc/{pid}/fd/{number}");
        let file = std::fs::File::options().read(true).write(true).open(path);
        let file = file.expect("the other lives");
        use std::os::fd::AsRawFd;
        // SAFETY: as declared.
        unsafe {
            let import = function!(
                cuda,
                "cuMemPoolImportFromShareableHandle",
                fn(*mut Handle, usize, c_uint, u64)
            );
            import(&raw mut self.pool, file.as_raw_fd() as usize, 1, 0)
        }
    }

    fn allocate(&mut self, bytes: usize, of_pool: bool) -> c_int {
        let (cuda, stream, mut address) = (&self.cuda, self.stream, 0);
        // SAFETY: as declared.
        let result = unsafe {
            if of_pool {
                let allocate =
                    function!(cuda, "cuMemAllocFromPoolAsync", fn(*mut u64, usize, Handle, Handle));
                allocate(&raw mut address, bytes, self.pool, stream)
            } else {
                let allocate = function!(cuda, "cuMemAllocAsync", fn(*mut u64, usize, Handle));
                allocate(&raw mut address, bytes, stream)
            }
        };
        self.allocations.push((address, bytes));
        result
    }

    fn set_current(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuDeviceSetMemPool", fn(c_int, Handle))(0, self.pool) }
    }

    fn export_pointer(&self) -> c_int {
        let (cuda, mut data) = (&self.cuda, [0; 8]);
        // SAFETY: as declared.
        let result = unsafe {
            let export = function!(cuda, "cuMemPoolExportPointer", fn(*mut Words, u64));
            export(&raw mut data, self.latest().0)
        };
        self.hand_over("pointer", data);
        result
    }

    fn import_pointer(&mut self, megabytes: &str) -> c_int {
        let bytes = megabytes.parse::<usize>().expect("a size") << 20;
        let (cuda, mut data, mut address) = (&self.cuda, self.handed_over("pointer"), 0);
        // SAFETY: as declared.
        let result = unsafe {
            let import =
                function!(cuda, "cuMemPoolImportPointer", fn(*mut u64, Handle, *mut Words));
            import(&raw mut address, self.pool, &raw mut data)
        };
        self.allocations.push((address, bytes));
        result
    }

    fn free(&self, index: usize) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe {
            let free = function!(cuda, "cuMemFreeAsync", fn(u64, Handle));
            free(self.allocations[index].0, self.stream).max(cuda.synchronize())
        }
    }

    fn trim(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuMemPoolTrimTo", fn(Handle, usize))(self.pool, 0) }
    }

    fn destroy_pool(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuMemPoolDestroy", fn(Handle))(self.pool) }
    }

    /// Used and reserved MiB.
    fn levels(&self) -> c_int {
        let cuda = &self.cuda;
        let [reserved, used] = [5, 7].map(|attribute: c_uint| {
            let mut value = 0_u64;
            // SAFETY: as declared.
            let result = unsafe {
                let ask = function!(cuda, "cuMemPoolGetAttribute", fn(Handle, c_uint, *mut u64));
                ask(self.pool, attribute, &raw mut value)
            };
            assert_eq!(result, 0);
            value >> 20
        });
        println!("used={used} reserved={reserved}");
        0
    }

    // ------------------------------------------------------------ memory

    /// Mapped memory for other machines, handed over.
    fn make_fabric(&mut self, bytes: usize) -> c_int {
        // CUmemAllocationProp: pinned, fabric handles, on device 0; the rest is zero.
        let properties: [c_int; 8] = [1, 8, 1, 0, 0, 0, 0, 0];
        let (cuda, mut handle, mut data): (_, u64, Words) = (&self.cuda, 0, [0; 8]);
        // SAFETY: as declared.
        let result = unsafe {
            let create = function!(cuda, "cuMemCreate", fn(*mut u64, usize, *const c_int, u64));
            assert_eq!(create(&raw mut handle, bytes, properties.as_ptr(), 0), 0);
            let export =
                function!(cuda, "cuMemExportToShareableHandle", fn(*mut Words, u64, c_uint, u64));
            export(&raw mut data, handle, 8, 0)
        };
        self.hand_over("fabric", data);
        self.map(handle, bytes);
        result
    }

    fn import_fabric(&mut self, megabytes: &str) -> c_int {
        let bytes = megabytes.parse::<usize>().expect("a size") << 20;
        let (cuda, mut data, mut handle) = (&self.cuda, self.handed_over("fabric"), 0);
        // SAFETY: as declared.
        let result = unsafe {
            let import =
                function!(cuda, "cuMemImportFromShareableHandle", fn(*mut u64, *mut Words, c_uint));
            import(&raw mut handle, &raw mut data, 8)
        };
        self.map(handle, bytes);
        result
    }

    /// It lives as long as its mapping.
    fn map(&mut self, handle: u64, bytes: usize) {
        let (cuda, mut address) = (&self.cuda, 0);
        let access: [c_int; 3] = [1, 0, 3];
        // SAFETY: as declared.
        unsafe {
            let reserve =
                function!(cuda, "cuMemAddressReserve", fn(*mut u64, usize, usize, u64, u64));
            assert_eq!(reserve(&raw mut address, bytes, 0, 0, 0), 0);
            let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
            assert_eq!(map(address, bytes, 0, handle, 0), 0);
            let open = function!(cuda, "cuMemSetAccess", fn(u64, usize, *const c_int, usize));
            assert_eq!(open(address, bytes, access.as_ptr(), 1), 0);
            assert_eq!(function!(cuda, "cuMemRelease", fn(u64))(handle), 0);
        }
        self.allocations.push((address, bytes));
    }

    /// A fill in the stream, and its end.
    fn write(&self, value: u8) -> c_int {
        let (cuda, (address, bytes)) = (&self.cuda, self.latest());
        // SAFETY: as declared.
        unsafe {
            let fill = function!(cuda, "cuMemsetD8Async", fn(u64, u8, usize, Handle));
            fill(address, value, bytes, self.stream).max(cuda.synchronize())
        }
    }

    fn verify(&self, value: u8) -> c_int {
        let (cuda, (address, bytes)) = (&self.cuda, self.latest());
        let mut seen = vec![!value; bytes];
        // SAFETY: as declared; the vector has that many bytes.
        let result = unsafe {
            let read = function!(cuda, "cuMemcpyDtoHAsync_v2", fn(*mut c_void, u64, usize, Handle));
            let result = read(seen.as_mut_ptr().cast(), address, bytes, self.stream);
            result.max(cuda.synchronize())
        };
        println!("wrong={}", seen.iter().filter(|byte| **byte != value).count());
        result
    }

    fn share_memory(&self) -> c_int {
        let (cuda, mut handle) = (&self.cuda, [0; 8]);
        // SAFETY: as declared.
        let result = unsafe {
            let take = function!(cuda, "cuIpcGetMemHandle", fn(*mut Words, u64));
            take(&raw mut handle, self.latest().0)
        };
        self.hand_over("memory", handle);
        result
    }

    /// The child has what the parent has, and waits for the end of a pipe.
    fn fork(&mut self) -> c_int {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        // SAFETY: the child only closes, reads and ends.
        if unsafe { libc::fork() } == 0 {
            drop(write);
            let _ = std::io::Read::read(&mut read, &mut [0]);
            // SAFETY: ends the child, without what the parent has to do at its end.
            unsafe { libc::_exit(0) };
        }
        self.child = Some(write);
        0
    }

    fn open_memory(&mut self, bytes: usize) -> c_int {
        let (cuda, handle, mut address) = (&self.cuda, self.handed_over("memory"), 0);
        // SAFETY: as declared; 1: peer access where it is needed.
        let result = unsafe {
            let open = function!(cuda, "cuIpcOpenMemHandle_v2", fn(*mut u64, Words, c_uint));
            open(&raw mut address, handle, 1)
        };
        self.allocations.push((address, bytes));
        result
    }

    fn close_memory(&self) -> c_int {
        let cuda = &self.cuda;
        // SAFETY: as declared.
        unsafe { function!(cuda, "cuIpcCloseMemHandle", fn(u64))(self.latest().0) }
    }
}
