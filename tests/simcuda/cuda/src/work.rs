//! What an operation does to memory when its time is over. Owns the movement of
//! bytes; when that happens is the timeline's business.
#![allow(unsafe_code)] // reads and writes simulated device memory through pointers

use std::sync::Arc;

use simcuda_device::fault::{Call, Way};

use crate::code::{ILLEGAL_ADDRESS, Outcome};
use crate::conditions::ConditionId;
use crate::handles::Handle;
use crate::kernels::KernelCall;
use crate::objects::Event;
use crate::physical::{Physical, Segment};
use crate::replay::Branch;
use crate::shared_event::SharedEvent;
use crate::space::{Access, Space};

/// What an operation does.
#[derive(Clone)]
pub(crate) enum Work {
    /// Nothing: it only orders others.
    Nothing,
    /// Notes the time in an event.
    Event(Handle<Event>),
    /// Runs a kernel.
    Kernel(KernelCall),
    /// Copies.
    Copy(Box<CopyShape>),
    /// Fills.
    Set(Box<SetShape>),
    /// Waits until memory has a value.
    Wait(WaitShape),
    /// Notes in an event of several processes that this record is reached.
    Signal(Arc<SharedEvent>, u64),
    /// Waits until it is.
    Await(Arc<SharedEvent>, u64),
    /// Calls the program back.
    Host(HostCall),
    /// Frees an allocation of a pool or of a graph.
    Free(u64),
    /// A run of a graph begins: its conditions have their defaults.
    Begin(Arc<[ConditionId]>),
    /// Runs bodies of a conditional node.
    Branch(Arc<Branch>),
    /// Puts memory behind a graph's allocation.
    Map(u64, Arc<Physical>),
}

/// A function of the program's.
#[derive(Clone, Copy)]
pub(crate) struct HostCall {
    pub(crate) function: HostFunction,
    pub(crate) data: usize,
}

/// The two kinds of them.
#[derive(Clone, Copy)]
pub(crate) enum HostFunction {
    /// `cuLaunchHostFunc`
    Plain(unsafe extern "C" fn(*mut std::ffi::c_void)),
    /// `cuStreamAddCallback`, with the stream to tell it.
    Callback(unsafe extern "C" fn(u64, u32, *mut std::ffi::c_void), u64),
}

impl HostCall {
    /// Calls it.
    pub(crate) fn call(self) {
        let data = self.data as *mut std::ffi::c_void;
        match self.function {
            // SAFETY: the program gave the function to be called with this data,
            // from a thread of the driver's.
            HostFunction::Plain(function) => unsafe { function(data) },
            // SAFETY: as above.
            HostFunction::Callback(function, stream) => unsafe { function(stream, 0, data) },
        }
    }
}

/// One end of a copy.
#[derive(Clone)]
pub(crate) enum Side {
    /// Host memory.
    Host(u64),
    /// Device memory, reached by a GPU.
    Device { address: u64, gpu: usize },
    /// Host memory as it was when the copy was asked for.
    Staged(Arc<[u8]>),
}

/// A copy of rows in layers.
#[derive(Clone)]
pub(crate) struct CopyShape {
    pub(crate) from: Side,
    pub(crate) to: Side,
    pub(crate) from_pitch: Pitch,
    pub(crate) to_pitch: Pitch,
    pub(crate) extent: Extent,
    /// A scripted fault: the copy breaks its context.
    pub(crate) fails: bool,
}

impl CopyShape {
    /// As scripted faults look at it.
    pub(crate) fn as_call(&self) -> Call<'static> {
        let way = match (&self.from, &self.to) {
            (Side::Device { .. }, Side::Host(_)) => Some(Way::Out),
            (Side::Host(_) | Side::Staged(_), Side::Device { .. }) => Some(Way::In),
            _ => None,
        };
        Call { kernel: None, way, bytes: self.extent.total() as u64 }
    }
}

/// How far rows and layers are apart.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pitch {
    pub(crate) row: usize,
    pub(crate) layer: usize,
}

/// How much there is: bytes in a row, rows, layers.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) bytes: usize,
    pub(crate) rows: usize,
    pub(crate) layers: usize,
}

impl Extent {
    /// Bytes that are moved.
    pub(crate) fn total(self) -> usize {
        self.bytes.saturating_mul(self.rows).saturating_mul(self.layers)
    }

    /// Bytes from the first to the last.
    pub(crate) fn span(self, pitch: Pitch) -> usize {
        if self.total() == 0 {
            return 0;
        }
        let layers = (self.layers - 1).saturating_mul(pitch.layer);
        let rows = (self.rows - 1).saturating_mul(pitch.row);
        layers.saturating_add(rows).saturating_add(self.bytes)
    }

    fn starts(self, pitch: Pitch) -> impl Iterator<Item = usize> {
        let rows = self.rows;
        (0..self.layers)
            .flat_map(move |layer| (0..rows).map(move |row| layer * pitch.layer + row * pitch.row))
    }
}

/// A fill of rows.
#[derive(Clone)]
pub(crate) struct SetShape {
    pub(crate) address: u64,
    pub(crate) gpu: usize,
    pub(crate) value: u32,
    /// Bytes of an element: 1, 2 or 4.
    pub(crate) width: usize,
    pub(crate) pitch: Pitch,
    pub(crate) extent: Extent,
}

/// What a stream waits for.
#[derive(Clone)]
pub(crate) struct WaitShape {
    pub(crate) side: Side,
    pub(crate) value: u64,
    /// Bytes: 4 or 8.
    pub(crate) width: usize,
    pub(crate) compare: Compare,
}

/// How memory is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    /// As numbers that go round.
    AtLeast,
    Equal,
    /// A bit that both have.
    AnyBit,
}

impl WaitShape {
    /// Whether it has come; none, if the memory cannot be read.
    pub(crate) fn has_come(&self, space: &Space) -> Option<bool> {
        let run = match &self.side {
            Side::Device { address, gpu } => {
                space.segments(*gpu, *address, self.width, Access::Read)?
            }
            Side::Host(address) => vec![Segment::of_host(*address, self.width)],
            Side::Staged(_) => return None,
        };
        let from = run.first()?.pointer();
        // SAFETY: aligned to its width, which was checked, hence in one segment; whoever writes it, writes it whole.
        let (now, top) = unsafe {
            match self.width {
                4 => (u64::from(from.cast::<u32>().read_volatile()), 1_u64 << 31),
                _ => (from.cast::<u64>().read_volatile(), 1_u64 << 63),
            }
        };
        Some(match self.compare {
            Compare::AtLeast => now.wrapping_sub(self.value) & top == 0,
            Compare::Equal => now == self.value,
            Compare::AnyBit => now & self.value != 0,
        })
    }
}

/// Work with the memory that it needs.
pub(crate) struct Ready {
    work: Work,
    runs: Vec<Vec<Segment>>,
}

impl Work {
    /// Finds the memory.
    pub(crate) fn prepare(self, space: &Space, gpu: usize) -> Outcome<Ready> {
        let find = |gpu, address, length, access| {
            space.segments(gpu, address, length, access).ok_or(ILLEGAL_ADDRESS)
        };
        let side = |side: &Side, span: usize, access| match side {
            Side::Device { address, gpu } => find(*gpu, *address, span, access),
            Side::Host(address) => Ok(vec![Segment::of_host(*address, span)]),
            Side::Staged(bytes) => Ok(vec![Segment::of_host(bytes.as_ptr() as u64, span)]),
        };
        let runs = match &self {
            Work::Kernel(call) => {
                let needs = call.needs()?;
                let mut runs = Vec::with_capacity(needs.len());
                for need in needs {
                    match need.access {
                        Access::Multicast => {
                            let all = space.multicast_segments(gpu, need.address, need.length);
                            runs.extend(all.ok_or(ILLEGAL_ADDRESS)?);
                        }
                        access => runs.push(find(gpu, need.address, need.length, access)?),
                    }
                }
                Ok(runs)
            }
            Work::Copy(shape) => {
                if shape.fails {
                    return Err(ILLEGAL_ADDRESS);
                }
                let from = side(&shape.from, shape.extent.span(shape.from_pitch), Access::Read)?;
                let to = side(&shape.to, shape.extent.span(shape.to_pitch), Access::Write)?;
                Ok(vec![from, to])
            }
            Work::Set(shape) => {
                let span = shape.extent.span(shape.pitch);
                Ok(vec![find(shape.gpu, shape.address, span, Access::Write)?])
            }
            Work::Nothing
            | Work::Event(_)
            | Work::Host(_)
            | Work::Free(_)
            | Work::Map(..)
            | Work::Signal(..)
            | Work::Await(..)
            | Work::Begin(_)
            | Work::Branch(_)
            | Work::Wait(_) => Ok(Vec::new()),
        };
        Ok(Ready { runs: runs?, work: self })
    }
}

impl Ready {
    /// Bytes that it touches, about.
    pub(crate) fn weight(&self) -> usize {
        self.runs.iter().flatten().map(Segment::len).sum()
    }

    /// Does it.
    pub(crate) fn run(&self) {
        match &self.work {
            Work::Kernel(call) => call.run(&self.runs),
            Work::Copy(shape) => {
                let starts = shape.extent.starts(shape.from_pitch);
                for (from, to) in starts.zip(shape.extent.starts(shape.to_pitch)) {
                    copy(&self.runs[0], from, &self.runs[1], to, shape.extent.bytes);
                }
            }
            Work::Set(shape) => {
                for start in shape.extent.starts(shape.pitch) {
                    set(&self.runs[0], start, shape.extent.bytes, shape.value, shape.width);
                }
            }
            Work::Nothing
            | Work::Event(_)
            | Work::Host(_)
            | Work::Free(_)
            | Work::Map(..)
            | Work::Signal(..)
            | Work::Await(..)
            | Work::Begin(_)
            | Work::Branch(_)
            | Work::Wait(_) => {}
        }
    }
}

/// The parts of a run of segments that `length` bytes from `offset` on lie in.
pub(crate) fn parts(run: &[Segment], mut offset: usize, mut length: usize) -> Vec<Segment> {
    let mut parts = Vec::with_capacity(1);
    for segment in run {
        if length == 0 {
            break;
        }
        if offset >= segment.len() {
            offset -= segment.len();
            continue;
        }
        let take = (segment.len() - offset).min(length);
        parts.push(segment.part(offset, take));
        length -= take;
        offset = 0;
    }
    parts
}

fn copy(from: &[Segment], from_start: usize, to: &[Segment], to_start: usize, length: usize) {
    let mut done = 0;
    for target in parts(to, to_start, length) {
        let mut inside = 0;
        for source in parts(from, from_start + done, target.len()) {
            // SAFETY: both parts are live memory of this length; they may overlap.
            unsafe {
                std::ptr::copy(
                    source.pointer().cast_const(),
                    target.pointer().add(inside),
                    source.len(),
                );
            }
            inside += source.len();
        }
        done += target.len();
    }
}

fn set(run: &[Segment], start: usize, length: usize, value: u32, width: usize) {
    let bytes = value.to_ne_bytes();
    let pattern = &bytes[..width];
    for part in parts(run, start, length) {
        if pattern.iter().all(|byte| *byte == pattern[0]) {
            // SAFETY: the part is live memory of this length.
            unsafe { std::ptr::write_bytes(part.pointer(), pattern[0], part.len()) };
            continue;
        }
        // Segments begin and end at multiples of 512 bytes, so no element is cut.
        for at in (0..part.len()).step_by(width) {
            // SAFETY: inside the part, as its length is a multiple of the width.
            unsafe {
                std::ptr::copy_nonoverlapping(pattern.as_ptr(), part.pointer().add(at), width);
            }
        }
    }
}
