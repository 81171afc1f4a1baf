//! Memory of the kinds that stay on the GPU: managed memory, arrays, what graphs allocate, variables of code, heaps.
//!
//! Owns: having one piece of each, and its content. Does not own: memory that may be moved ([`crate::memory`]).
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_uint, c_void};
use std::ptr;

use super::{DevicePtr, Driver, DriverError};
use crate::reference::splitmix64;

functions! {
    managed = "cuMemAllocManaged"(*mut DevicePtr, usize, c_uint);
    free = "cuMemFree_v2"(DevicePtr);
    array = "cuArrayCreate_v2"(*mut *mut c_void, *const Shape);
    array_destroy = "cuArrayDestroy"(*mut c_void);
    copy = "cuMemcpy2D_v2"(*const Copy);
    graph = "cuGraphCreate"(*mut *mut c_void, c_uint);
    graph_alloc = "cuGraphAddMemAllocNode"(*mut *mut c_void, *mut c_void, *const *mut c_void, usize, *mut Allocation);
    instantiate = "cuGraphInstantiateWithFlags"(*mut *mut c_void, *mut c_void, u64);
    launch = "cuGraphLaunch"(*mut c_void, *mut c_void);
    graph_destroy = "cuGraphDestroy"(*mut c_void);
    exec_destroy = "cuGraphExecDestroy"(*mut c_void);
    module = "cuModuleLoadData"(*mut *mut c_void, *const c_void);
    global = "cuModuleGetGlobal_v2"(*mut DevicePtr, *mut usize, *mut c_void, *const c_char);
    module_unload = "cuModuleUnload"(*mut c_void);
    limit = "cuCtxGetLimit"(*mut usize, c_uint);
    set_limit = "cuCtxSetLimit"(c_uint, usize);
    copy_in = "cuMemcpyHtoD_v2"(DevicePtr, *const c_void, usize);
    copy_out = "cuMemcpyDtoH_v2"(*mut c_void, DevicePtr, usize);
}

/// `CU_LIMIT_MALLOC_HEAP_SIZE`
const HEAP: c_uint = 2;
/// Bytes of a row of an array.
const ROW: usize = 4096;
const HOST: c_uint = 1;
const ARRAY: c_uint = 3;

/// `CUDA_ARRAY_DESCRIPTOR`
#[repr(C)]
struct Shape {
    width: usize,
    height: usize,
    format: c_uint,
    channels: c_uint,
}

/// One side of a `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Side {
    x: usize,
    y: usize,
    kind: c_uint,
    host: *mut c_void,
    device: DevicePtr,
    array: *mut c_void,
    pitch: usize,
}

#[repr(C)]
struct Copy {
    from: Side,
    to: Side,
    width: usize,
    height: usize,
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`
#[repr(C)]
struct Allocation {
    /// kind, types of handles, location: kind and number
    properties: [c_uint; 4],
    more: [u64; 9],
    access: *const c_void,
    count: usize,
    bytes: usize,
    address: DevicePtr,
}

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of `cuMemAllocManaged`.
    Managed,
    /// An array.
    Array,
    /// What a graph has allocated and left to the program.
    Graph,
    /// A variable of a module.
    Module,
    /// The same, loaded from a compressed container.
    Packed,
    /// The heap for kernels, which nobody sees.
    Heap,
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "managed" => Self::Managed,
            "array" => Self::Array,
            "graph" => Self::Graph,
            "module" => Self::Module,
            "packed" => Self::Packed,
            "heap" => Self::Heap,
            _ => return Err(format!("'{text}': managed, array, graph, module, packed or heap")),
        })
    }
}

/// One piece of each kind at most.
pub struct Staying<'a> {
    driver: &'a Driver,
    table: Table,
    pieces: BTreeMap<Kind, Piece>,
}

/// Where it is, and what must be destroyed with it.
struct Piece {
    bytes: usize,
    address: DevicePtr,
    owners: Vec<*mut c_void>,
}

impl<'a> Staying<'a> {
    /// Nothing yet.
    pub fn of(driver: &'a Driver) -> Result<Self, DriverError> {
        Ok(Self { driver, table: Table::load(&driver.library)?, pieces: BTreeMap::new() })
    }

    fn error(&self, call: &'static str, code: u32) -> DriverError {
        self.driver.error(call, code)
    }

    /// Allocates so many bytes, a multiple of 4 KiB, and fills them.
    pub fn hold(&mut self, kind: Kind, bytes: usize) -> Result<(), DriverError> {
        let piece = self.allocate(kind, bytes)?;
        self.pieces.insert(kind, piece);
        self.write(kind)
    }

    fn allocate(&self, kind: Kind, bytes: usize) -> Result<Piece, DriverError> {
        let (mut address, mut owners) = (0, Vec::new());
        match kind {
            // 1: for all streams
            Kind::Managed => call!(self, managed(&mut address, bytes, 1))?,
            Kind::Array => {
                // Elements of two words of 32 bits.
                let shape = Shape { width: ROW / 8, height: bytes / ROW, format: 3, channels: 2 };
                let mut array = ptr::null_mut();
                call!(self, array(&mut array, &shape))?;
                owners.push(array);
            }
            Kind::Graph => {
                let (mut graph, mut node, mut exec) =
                    (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
                call!(self, graph(&mut graph, 0))?;
                // Pinned memory of device 0.
                let mut wanted = Allocation {
                    properties: [1, 0, 1, 0],
                    more: [0; 9],
                    access: ptr::null(),
                    count: 0,
                    bytes,
                    address: 0,
                };
                call!(self, graph_alloc(&mut node, graph, ptr::null(), 0, &mut wanted))?;
                call!(self, instantiate(&mut exec, graph, 0))?;
                call!(self, launch(exec, ptr::null_mut()))?;
                self.driver.synchronize()?;
                owners.extend([graph, exec]);
                address = wanted.address;
            }
            Kind::Module | Kind::Packed => {
                let text = format!(
                    ".version 6.4\n.target sm_52\n.address_size 64\n.visible .global .align 8 .b8 table[{bytes}];\n"
                );
                let image = match kind {
                    Kind::Packed => packed(&text),
                    _ => CString::new(text).expect("no zero byte in it").into_bytes_with_nul(),
                };
                let (mut module, mut size) = (ptr::null_mut(), 0);
                call!(self, module(&mut module, image.as_ptr().cast()))?;
                owners.push(module);
                call!(self, global(&mut address, &mut size, module, c"table".as_ptr()))?;
                assert_eq!(size, bytes, "the variable has the size that the text says");
            }
            Kind::Heap => {
                let mut usual = 0;
                call!(self, limit(&mut usual, HEAP))?;
                call!(self, set_limit(HEAP, usual + bytes))?;
            }
        }
        Ok(Piece { bytes, address, owners })
    }

    /// Frees it.
    pub fn release(&mut self, kind: Kind) -> Result<(), DriverError> {
        let Some(Piece { bytes, address, owners }) = self.pieces.remove(&kind) else {
            return Ok(());
        };
        match (kind, &owners[..]) {
            (Kind::Array, [array]) => call!(self, array_destroy(*array)),
            (Kind::Graph, [graph, exec]) => {
                call!(self, free(address))?;
                call!(self, exec_destroy(*exec))?;
                call!(self, graph_destroy(*graph))
            }
            (Kind::Module | Kind::Packed, [module]) => call!(self, module_unload(*module)),
            (Kind::Heap, _) => {
                let mut now = 0;
                call!(self, limit(&mut now, HEAP))?;
                call!(self, set_limit(HEAP, now - bytes))
            }
            _ => call!(self, free(address)),
        }
    }

    /// Bytes that can be looked at, and those of them that are wrong.
    pub fn check(&self) -> Result<(u64, u64), DriverError> {
        let (mut all, mut wrong) = (0, 0);
        for (kind, piece) in &self.pieces {
            let mut found = vec![0u64; piece.bytes / 8];
            match kind {
                Kind::Heap => continue,
                Kind::Array => self.copy_array(piece, &mut found, Direction::Out)?,
                _ => {
                    let to = found.as_mut_ptr().cast();
                    call!(self, copy_out(to, piece.address, piece.bytes))?;
                }
            }
            all += piece.bytes as u64;
            let expected = content(*kind, piece.bytes);
            wrong += found.iter().zip(expected).filter(|(found, right)| **found != *right).count()
                as u64
                * 8;
        }
        Ok((all, wrong))
    }

    fn write(&self, kind: Kind) -> Result<(), DriverError> {
        let Some(piece) = self.pieces.get(&kind) else { return Ok(()) };
        let mut words: Vec<u64> = content(kind, piece.bytes).collect();
        match kind {
            Kind::Heap => Ok(()),
            Kind::Array => self.copy_array(piece, &mut words, Direction::In),
            _ => call!(self, copy_in(piece.address, words.as_ptr().cast(), piece.bytes)),
        }
    }

    fn copy_array(
        &self,
        piece: &Piece,
        words: &mut [u64],
        direction: Direction,
    ) -> Result<(), DriverError> {
        let nothing = Side {
            x: 0,
            y: 0,
            kind: ARRAY,
            host: ptr::null_mut(),
            device: 0,
            array: piece.owners[0],
            pitch: 0,
        };
        let host = Side {
            kind: HOST,
            host: words.as_mut_ptr().cast(),
            array: ptr::null_mut(),
            pitch: ROW,
            ..nothing
        };
        let (from, to) = match direction {
            Direction::In => (host, nothing),
            Direction::Out => (nothing, host),
        };
        call!(self, copy(&Copy { from, to, width: ROW, height: piece.bytes / ROW }))
    }
}

/// A container ("fat binary") with a text, compressed as `fatbinary --compress-mode=speed` does it.
fn packed(text: &str) -> Vec<u8> {
    let content = lz4_flex::block::compress(text.as_bytes());
    // A container's head; then the entry: PTX, its head's length, the content's with padding and without, kind of GPU, flags, and
    // what the content unpacks to.
    let padded = content.len().next_multiple_of(8);
    let mut image = vec![0; 16 + 64 + padded];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]);
    put(8, &(64 + padded).to_le_bytes());
    put(16, &[1, 0, 1, 1, 64]);
    put(24, &padded.to_le_bytes());
    put(32, &(content.len() as u32).to_le_bytes());
    put(44, &52_u32.to_le_bytes());
    put(56, &0x2000_u64.to_le_bytes());
    put(72, &text.len().to_le_bytes());
    put(80, &content);
    image
}

enum Direction {
    In,
    Out,
}

/// What a piece holds: no two kinds, and no two processes, have the same.
fn content(kind: Kind, bytes: usize) -> impl Iterator<Item = u64> {
    let seed = splitmix64(u64::from(std::process::id()) << 8 | kind as u64);
    (0..bytes as u64 / 8).map(move |at| splitmix64(seed.wrapping_add(at)))
}
