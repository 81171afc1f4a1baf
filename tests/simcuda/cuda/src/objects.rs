//! The objects that programs hold handles to, and the tables of them. Data only.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use acb_cuda_abi::CuResult;
use simcuda_device::Nanos;

use crate::capture::{Capture, Captures, Part};
use crate::code::{INVALID_CONTEXT, INVALID_HANDLE, Outcome};
use crate::graph::{Executable, Graph, Node};
use crate::graph_memory::GraphMemory;
use crate::handles::{Handle, Slab, Tag};
use crate::kernels::Kernel;
use crate::link::Link;
use crate::physical::{Physical, Segment};
use crate::ptx::{Image, Parameter};
use crate::shared_event::SharedEvent;
use crate::space::{ALIGNMENT, GRANULARITY, Space};
use crate::timeline::{Op, Timeline};
use crate::unasked::Unasked;
use crate::work::{Work, parts};

/// A context.
pub(crate) struct Context {
    /// The device as the program counts.
    pub(crate) ordinal: usize,
    /// The GPU as the machine counts.
    pub(crate) gpu: usize,
    pub(crate) primary: bool,
    /// How often it was made and attached, less detached.
    pub(crate) users: usize,
    pub(crate) flags: u32,
    /// The error that broke it.
    pub(crate) broken: Option<CuResult>,
    /// Work handed in and not over.
    pub(crate) pending: usize,
    pub(crate) legacy: Handle<Stream>,
    pub(crate) per_thread: HashMap<u64, Handle<Stream>>,
    /// All streams, the default ones included.
    pub(crate) streams: Vec<Handle<Stream>>,
    pub(crate) limits: HashMap<u32, usize>,
    pub(crate) peers: Vec<Handle<Context>>,
    pub(crate) id: u64,
}

/// Which rules of the legacy default stream hold for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// The legacy default stream: waits for all blocking ones.
    Legacy,
    /// Waits for the legacy one.
    Blocking,
    /// Neither.
    NonBlocking,
}

/// A stream.
pub(crate) struct Stream {
    pub(crate) context: Handle<Context>,
    pub(crate) kind: StreamKind,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) id: u64,
    /// The last work handed in.
    pub(crate) tail: Option<Handle<Op>>,
    /// Work handed in and not over.
    pub(crate) pending: usize,
    /// The capture that it takes part in.
    pub(crate) part: Option<Part>,
}

/// An event.
pub(crate) struct Event {
    pub(crate) context: Handle<Context>,
    pub(crate) timed: bool,
    /// Alone it says how far the event is, but for what is captured.
    pub(crate) shared: Option<Arc<SharedEvent>>,
    pub(crate) state: EventState,
}

/// How far an event is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum EventState {
    Unrecorded,
    Pending(Handle<Op>),
    At(Nanos),
    /// Recorded in a stream that captured: behind these nodes.
    Captured(Handle<Capture>, Vec<Handle<Node>>),
}

/// A module, or a library as one of its contexts sees it.
pub(crate) struct Module {
    pub(crate) context: Handle<Context>,
    pub(crate) image: Arc<Image>,
    pub(crate) functions: HashMap<String, Handle<Function>>,
    pub(crate) globals: HashMap<String, (u64, usize)>,
    /// Modules of a library are not unloaded by themselves.
    pub(crate) of_library: bool,
}

/// A kernel in a module.
pub(crate) struct Function {
    pub(crate) name: Arc<str>,
    pub(crate) parameters: Arc<[Parameter]>,
    pub(crate) kernel: Kernel,
    pub(crate) module: Handle<Module>,
    pub(crate) context: Handle<Context>,
    pub(crate) dynamic_shared: u32,
    /// What the driver took when it was first launched.
    pub(crate) code: Option<Unasked>,
}

/// A library: an image that is loaded into contexts as they use it.
pub(crate) struct Library {
    pub(crate) image: Arc<Image>,
    pub(crate) modules: HashMap<Handle<Context>, Handle<Module>>,
    pub(crate) kernels: HashMap<String, Handle<LibraryKernel>>,
}

/// A kernel of a library.
pub(crate) struct LibraryKernel {
    pub(crate) library: Handle<Library>,
    pub(crate) name: String,
}

/// A handle to memory that the program maps itself.
pub(crate) struct Mapped {
    pub(crate) memory: Arc<Physical>,
    /// What the program asked for, to be told again.
    pub(crate) gpu_ordinal: usize,
    /// Types of handles that can be made of it.
    pub(crate) handle_types: u32,
    /// Compression, RDMA, usage, as the program asked for them.
    pub(crate) flags: u64,
    pub(crate) references: u32,
}

/// Memory of another process's, opened by its handle.
pub(crate) struct OpenedMemory {
    pub(crate) context: Handle<Context>,
    /// What the handle said.
    pub(crate) named: [u64; 4],
    /// It is closed as often.
    pub(crate) times: u32,
}

/// A pool that several processes have: the one that it is of, and its handle there.
pub(crate) type PoolName = [u64; 2];

/// A pool of memory that is handed out in stream order.
pub(crate) struct Pool {
    pub(crate) ordinal: usize,
    pub(crate) default: bool,
    /// Types of handles that can be made of it.
    pub(crate) handle_types: u32,
    /// Another process's, of which single allocations are imported.
    pub(crate) origin: Option<PoolName>,
    /// The file by which others find it.
    pub(crate) file: Option<std::fs::File>,
    /// Other GPUs that reach its allocations, one bit each.
    pub(crate) open_to: u32,
    pub(crate) release_threshold: u64,
    pub(crate) reuse: [i32; 3],
    pub(crate) used: u64,
    pub(crate) used_high: u64,
    /// Memory kept for the next allocation, by size.
    pub(crate) kept: Vec<Arc<Physical>>,
    pub(crate) reserved: u64,
    pub(crate) reserved_high: u64,
}

/// An array; its rows lie one behind the other.
pub(crate) struct Array {
    pub(crate) context: Handle<Context>,
    pub(crate) start: u64,
    /// Bytes of a row.
    pub(crate) row: usize,
    /// Elements in a row, rows, layers; 0 where it has no such dimension.
    pub(crate) size: [usize; 3],
    pub(crate) format: u32,
    pub(crate) channels: u32,
    pub(crate) flags: u32,
    /// Of a mipmapped array, and gone with it.
    pub(crate) is_level: bool,
}

impl Array {
    /// Whether the program brings the memory.
    pub(crate) fn is_sparse(&self) -> bool {
        self.flags & crate::calls::SPARSE != 0
    }

    /// Bytes of its addresses.
    pub(crate) fn length(&self) -> usize {
        let unit = if self.is_sparse() { GRANULARITY } else { ALIGNMENT };
        (self.row * self.size[1].max(1) * self.size[2].max(1)).next_multiple_of(unit)
    }
}

/// An array for each level.
pub(crate) struct Mipmap {
    pub(crate) levels: Vec<Handle<Array>>,
}

/// Memory of several GPUs under one address.
pub(crate) struct Multicast {
    /// How many there will be.
    pub(crate) devices: usize,
    pub(crate) size: usize,
    /// It outlives its handle where it is mapped.
    pub(crate) members: Mutex<Members>,
}

/// Whose memory such an object has.
#[derive(Default)]
pub(crate) struct Members {
    /// The GPUs, as the machine counts.
    pub(crate) added: Vec<usize>,
    pub(crate) bindings: Vec<Binding>,
}

impl Multicast {
    pub(crate) fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A GPU's memory in such an object.
pub(crate) struct Binding {
    pub(crate) gpu: usize,
    pub(crate) offset: usize,
    pub(crate) size: usize,
    /// They stay as long as they are bound, each from an offset on.
    pub(crate) memories: Vec<Arc<Physical>>,
    pub(crate) inside: usize,
}

impl Binding {
    /// A part of it, by its place in the object.
    pub(crate) fn segments(&self, start: usize, length: usize) -> Vec<Segment> {
        let whole: Vec<Segment> =
            self.memories.iter().map(|memory| memory.at(0, memory.length())).collect();
        parts(&whole, self.inside + start - self.offset, length)
    }
}

/// Memory of another library's.
pub(crate) struct External {
    pub(crate) context: Handle<Context>,
    pub(crate) memory: Arc<Physical>,
}

/// What a texture or a surface shows, as the program said it.
pub(crate) type Texture = [u8; size_of::<acb_cuda_abi::sys::CUDA_RESOURCE_DESC>()];

/// The primary context of a device.
#[derive(Default)]
pub(crate) struct Primary {
    pub(crate) context: Option<Handle<Context>>,
    pub(crate) retained: u32,
    pub(crate) flags: u32,
}

/// Everything that the process's calls share, under one lock.
pub(crate) struct Tables {
    pub(crate) primaries: Vec<Primary>,
    pub(crate) contexts: Slab<Context>,
    pub(crate) streams: Slab<Stream>,
    pub(crate) events: Slab<Event>,
    pub(crate) modules: Slab<Module>,
    pub(crate) functions: Slab<Function>,
    pub(crate) libraries: Slab<Library>,
    pub(crate) kernels: Slab<LibraryKernel>,
    pub(crate) mapped: Slab<Mapped>,
    pub(crate) opened: BTreeMap<u64, OpenedMemory>,
    pub(crate) pools: Slab<Pool>,
    pub(crate) device_pools: Vec<(Handle<Pool>, Handle<Pool>)>,
    pub(crate) graphs: Slab<Graph>,
    pub(crate) nodes: Slab<Node>,
    pub(crate) executables: Slab<Executable>,
    pub(crate) captures: Captures,
    pub(crate) links: Slab<Link>,
    pub(crate) arrays: Slab<Array>,
    pub(crate) mipmaps: Slab<Mipmap>,
    pub(crate) multicasts: Slab<Arc<Multicast>>,
    pub(crate) textures: Slab<Texture>,
    pub(crate) externals: Slab<External>,
    pub(crate) graph_memory: GraphMemory,
    pub(crate) space: Space,
    pub(crate) timeline: Timeline,
    pub(crate) last_id: u64,
    /// How many GPUs the machine has.
    pub(crate) gpus: usize,
}

impl Tables {
    pub(crate) fn new(devices: usize, gpus: usize) -> Tables {
        Tables {
            primaries: (0..devices).map(|_| Primary::default()).collect(),
            contexts: Slab::new(Tag::Context),
            streams: Slab::new(Tag::Stream),
            events: Slab::new(Tag::Event),
            modules: Slab::new(Tag::Module),
            functions: Slab::new(Tag::Function),
            libraries: Slab::new(Tag::Library),
            kernels: Slab::new(Tag::Kernel),
            mapped: Slab::new(Tag::Physical),
            opened: BTreeMap::new(),
            pools: Slab::new(Tag::Pool),
            device_pools: Vec::new(),
            graphs: Slab::new(Tag::Graph),
            nodes: Slab::new(Tag::Node),
            executables: Slab::new(Tag::Executable),
            captures: Captures::new(),
            links: Slab::new(Tag::Link),
            arrays: Slab::new(Tag::Array),
            mipmaps: Slab::new(Tag::Mipmap),
            multicasts: Slab::new(Tag::Multicast),
            textures: Slab::new(Tag::Texture),
            externals: Slab::new(Tag::External),
            graph_memory: GraphMemory::default(),
            space: Space::default(),
            timeline: Timeline::new(),
            last_id: 0,
            gpus,
        }
    }

    /// A number that no other object has.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The context, if it exists and is not broken.
    pub(crate) fn context(&self, handle: Handle<Context>) -> Outcome<&Context> {
        let context = self.contexts.get(handle).ok_or(INVALID_CONTEXT)?;
        match context.broken {
            Some(code) => Err(code),
            None => Ok(context),
        }
    }

    /// The work that records an event.
    pub(crate) fn recording_work(&self, handle: Handle<Event>) -> Work {
        match self.events.get(handle).and_then(|event| event.shared.as_ref()) {
            Some(shared) => Work::Signal(Arc::clone(shared), shared.record()),
            None => Work::Event(handle),
        }
    }

    /// That work has been handed in.
    pub(crate) fn is_recorded(&mut self, handle: Handle<Event>, op: Option<Handle<Op>>) {
        let Some(event) = self.events.get_mut(handle) else { return };
        match (&event.shared, op) {
            (Some(_), _) => event.state = EventState::Unrecorded,
            (None, Some(op)) => event.state = EventState::Pending(op),
            // It was over at once, and noted so.
            (None, None) => {}
        }
    }

    /// The event.
    pub(crate) fn event(&self, handle: Handle<Event>) -> Outcome<&Event> {
        self.events.get(handle).ok_or(INVALID_HANDLE)
    }
}
