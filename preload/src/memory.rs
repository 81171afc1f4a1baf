//! The account of device memory that stays where it is: what this client has of it, and the room it has been promised.
//!
//! Owns: asking the assigner for room before memory is allocated, waiting for it, giving it back;
//! what cuMemGetInfo answers.
//! Does not own: allocating (`hooks::memory`), what contexts take (`contexts`), or the ledger of the whole GPU (the assigner's).
//!
//! Room is asked for in slabs, so that a thousand small allocations cost one question, and given
//! back with some slack kept, so that allocating and freeing in turns costs none. What is asked for
//! seldom is asked for and given back exactly.
//!
//! Memory that can be moved is the pager's (`pager`), and counted there.

mod contexts;
mod growth;
mod measuring;
mod unasked;

pub(crate) use growth::Growth;

use crate::link::LINK;
use crate::log::warning;
use crate::pager::PAGER;
use crate::work::WORK;
use acb_wire::v1::{
    RoomKind, RoomReply, RoomRequest, RoomReturn, RoomVerdict, client_message::Kind,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Numbers of questions, the pager's too: an answer says no more than the number.
static LAST_SEQ: AtomicU64 = AtomicU64::new(0);

pub(crate) fn next_seq() -> u64 {
    LAST_SEQ.fetch_add(1, Ordering::Relaxed) + 1
}

/// What small requests are rounded up to.
const SLAB: u64 = 32 << 20;
/// The same where most memory is the pager's: what others could use is not kept from them for a few arrays.
const SMALL_SLAB: u64 = 2 << 20;

fn slab() -> u64 {
    if PAGER.is_active() { SMALL_SLAB } else { SLAB }
}

/// The one account of this process.
pub(crate) static LEDGER: Ledger = Ledger::new();

/// What the driver knows an allocation by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Pointer(u64),
    Physical(u64),
    Array(usize),
    Mipmap(usize),
    /// Variables of a module.
    Module(usize),
    /// Variables of a library in a context.
    Library(usize, usize),
    /// What a context has for kernels, by the limit's number.
    Limit(usize, u32),
    /// What a green context takes beside the primary context that it is a part of.
    Green(usize),
    /// What the driver has reserved for a pool for other processes, by the pool's number here.
    Pool(u64),
    /// What a graph allocates when it runs, by its number here and the device.
    Graph(u64, u32),
    /// What the driver takes for itself on a device.
    Driver(u32),
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    device: u32,
    bytes: u64,
    portion: Portion,
    kind: MemoryKind,
    /// Its end is the end of its memory; 0: bound to no context.
    context: usize,
    /// What keeps the memory: handles and mappings for physical memory, else the allocation itself.
    owners: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Device {
    /// What a client alone on the GPU can have.
    capacity: u64,
    room: u64,
    used: u64,
    /// How much of that was asked for in slabs.
    in_slabs: u64,
}

#[derive(Clone, Debug)]
struct Request {
    device: u32,
    bytes: u64,
    kind: RoomKind,
    verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    Waiting(String),
    Granted,
    Denied(String),
    /// Not wanted any more; if it was granted meanwhile, the room is this client's all the same.
    Withdrawn,
}

#[derive(Default)]
struct Books {
    /// Empty: nothing is counted.
    devices: Vec<Device>,
    /// What the driver takes for a context, as far as is known.
    context_bytes: u64,
    /// What the pager has for itself in each.
    overhead: u64,
    /// How often at most the process is measured; zero: never.
    measure: Duration,
    holdings: BTreeMap<Key, Holding>,
    /// Where the program has mapped its physical memory: the handle behind each address.
    mappings: BTreeMap<u64, u64>,
    /// Contexts that were counted, with their devices and bytes.
    contexts: BTreeMap<usize, (u32, u64)>,
    /// The primary context of each device.
    primaries: BTreeMap<u32, usize>,
    requests: BTreeMap<u64, Request>,
}

pub(crate) struct Ledger {
    books: Mutex<Books>,
    replied: Condvar,
}

/// Memory that has been promised but is not in the books yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    device: u32,
    bytes: u64,
    portion: Portion,
    kind: MemoryKind,
}

impl Promise {
    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }

    /// The same for memory that is not called by the call that asks for it.
    pub(crate) fn of_kind(self, kind: MemoryKind) -> Promise {
        Promise { kind, ..self }
    }
}

/// How much is asked for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Portion {
    /// More than is needed now, so that the next need not be asked for.
    Slab,
    Exact,
}

/// What memory is to the program, and so why it is not moved; as status calls it.
type MemoryKind = &'static str;

/// The kind of what a call allocates past the pager.
fn kind_of(call: &str) -> MemoryKind {
    match call {
        "cuMemAllocManaged" => "managed",
        "cuCtxSetLimit" => "heaps",
        // Another process's, which has ended.
        "cuIpcOpenMemHandle" => "ipc",
        _ if call.contains("Array") => "arrays",
        _ if call.starts_with("cuModule") || call.starts_with("cuLibrary") => "modules",
        _ if call.starts_with("cuGraph") => "graphs",
        // The pager leaves what is to be handed to others, and what a capture allocates, to the driver.
        "cuMemCreate" if PAGER.is_active() => "exported",
        _ if call.ends_with("Async") && WORK.is_capturing() => "graphs",
        _ => "plain",
    }
}

impl Ledger {
    const fn new() -> Self {
        Ledger {
            books: Mutex::new(Books {
                devices: Vec::new(),
                context_bytes: 0,
                overhead: 0,
                measure: Duration::ZERO,
                holdings: BTreeMap::new(),
                mappings: BTreeMap::new(),
                contexts: BTreeMap::new(),
                primaries: BTreeMap::new(),
                requests: BTreeMap::new(),
            }),
            replied: Condvar::new(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counting begins: these are the GPUs, and what a context takes on each.
    pub(crate) fn start(&self, capacities: Vec<u64>, context_bytes: u64, measure: Duration) {
        let mut books = self.books();
        books.devices = capacities
            .into_iter()
            .map(|capacity| Device { capacity, ..Device::default() })
            .collect();
        books.context_bytes = context_bytes;
        books.measure = measure;
    }

    /// Each context takes so much more than the assigner knows of; before the first one is made.
    pub(crate) fn enlarge_contexts(&self, bytes: u64) {
        let mut books = self.books();
        if books.context_bytes > 0 {
            books.overhead = bytes;
        }
    }

    /// There is no assigner any more: nothing is counted, nobody waits.
    pub(crate) fn stop(&self) {
        let mut books = self.books();
        books.devices.clear();
        books.requests.clear();
        self.replied.notify_all();
    }

    /// Room for memory, waiting for it where others have it; `None`: the client alone would exceed
    /// the GPU, and the reason has been told.
    pub(crate) fn reserve(&self, call: &str, device: i32, bytes: u64) -> Option<Promise> {
        self.reserve_in(call, device, bytes, Portion::Slab)
    }

    /// The same without a slab, for what is asked for seldom.
    pub(crate) fn reserve_exactly(&self, call: &str, device: i32, bytes: u64) -> Option<Promise> {
        self.reserve_in(call, device, bytes, Portion::Exact)
    }

    fn reserve_in(&self, call: &str, device: i32, bytes: u64, portion: Portion) -> Option<Promise> {
        let device = device as u32;
        match self.ask(device, bytes, RoomKind::Memory, portion) {
            Ok(()) => Some(Promise { device, bytes, portion, kind: kind_of(call) }),
            Err(reason) => {
                warning!(
                    "{call}: {} on GPU {device} refused, CUDA_ERROR_OUT_OF_MEMORY is returned: {reason}",
                    size(bytes)
                );
                None
            }
        }
    }

    /// The memory exists now.
    pub(crate) fn allocated(&self, promise: Promise, key: Key, context: usize) {
        let Promise { device, bytes, portion, kind } = promise;
        let mut books = self.books();
        let holding = Holding { device, bytes, portion, kind, context, owners: 1 };
        // What the driver gives out anew was freed before, on a way unknown here.
        if let Some(gone) = books.holdings.insert(key, holding) {
            self.give_back(&mut books, gone.device, gone.bytes, gone.portion);
        }
    }

    /// What is held under a key has become more, or is the first of it.
    pub(crate) fn grown(&self, promise: Promise, key: Key, context: usize) {
        let Promise { device, bytes, portion, kind } = promise;
        let mut books = self.books();
        let first = Holding { device, bytes: 0, portion, kind, context, owners: 1 };
        books.holdings.entry(key).or_insert(first).bytes += bytes;
    }

    /// …and less.
    pub(crate) fn shrunk(&self, key: Key, bytes: u64) {
        let mut books = self.books();
        let Some(holding) = books.holdings.get_mut(&key) else { return };
        let bytes = bytes.min(holding.bytes);
        holding.bytes -= bytes;
        let Holding { device, portion, bytes: left, .. } = *holding;
        if left == 0 {
            books.holdings.remove(&key);
        }
        self.give_back(&mut books, device, bytes, portion);
    }

    /// It does not: the driver refused.
    pub(crate) fn forget(&self, promise: Promise) {
        self.give_back(&mut self.books(), promise.device, promise.bytes, promise.portion);
    }

    /// Takes an allocation out of the books before it is freed: another thread may be given the
    /// same address at once.
    pub(crate) fn take(&self, key: Key) -> Option<Taken> {
        self.books().holdings.remove(&key).map(|holding| Taken { key, holding })
    }

    /// It was freed.
    pub(crate) fn freed(&self, taken: Taken) {
        let Holding { device, bytes, portion, .. } = taken.holding;
        self.give_back(&mut self.books(), device, bytes, portion);
    }

    /// It was not.
    pub(crate) fn put_back(&self, taken: Taken) {
        self.books().holdings.insert(taken.key, taken.holding);
    }

    /// Physical memory has one more handle or mapping.
    pub(crate) fn shared(&self, handle: u64) {
        if let Some(holding) = self.books().holdings.get_mut(&Key::Physical(handle)) {
            holding.owners += 1;
        }
    }

    /// …and one less; with the last one it is gone.
    pub(crate) fn dropped(&self, handle: u64) {
        self.drop_owner(&mut self.books(), handle);
    }

    pub(crate) fn mapped(&self, address: u64, handle: u64) {
        self.shared(handle);
        self.books().mappings.insert(address, handle);
    }

    /// All mappings in a range are gone.
    pub(crate) fn unmapped(&self, address: u64, bytes: u64) {
        let mut books = self.books();
        let range = address..address.saturating_add(bytes);
        let gone: Vec<(u64, u64)> =
            books.mappings.range(range).map(|(at, handle)| (*at, *handle)).collect();
        for (at, handle) in gone {
            books.mappings.remove(&at);
            self.drop_owner(&mut books, handle);
        }
    }

    fn drop_owner(&self, books: &mut Books, handle: u64) {
        let key = Key::Physical(handle);
        let Some(holding) = books.holdings.get_mut(&key) else { return };
        holding.owners -= 1;
        if holding.owners == 0 {
            let Holding { device, bytes, portion, .. } = *holding;
            books.holdings.remove(&key);
            self.give_back(books, device, bytes, portion);
        }
    }

    /// Free and total bytes of a device, as if this client were alone on it.
    pub(crate) fn info(&self, device: i32) -> Option<(u64, u64)> {
        let books = self.books();
        let device = books.devices.get(device as usize)?;
        Some((device.capacity.saturating_sub(device.used), device.capacity))
    }

    /// For each device what is held of each kind, in bytes.
    pub(crate) fn fixed(&self) -> Vec<BTreeMap<&'static str, u64>> {
        let books = self.books();
        let mut devices = vec![BTreeMap::new(); books.devices.len()];
        let contexts = books.contexts.values().map(|(device, bytes)| (*device, "contexts", *bytes));
        let holdings = books.holdings.values().map(|it| (it.device, it.kind, it.bytes));
        for (device, kind, bytes) in contexts.chain(holdings).filter(|(_, _, bytes)| *bytes > 0) {
            if let Some(kinds) = devices.get_mut(device as usize) {
                *kinds.entry(kind).or_insert(0) += bytes;
            }
        }
        devices
    }

    // ------------------------------------------------------------ room

    fn ask(&self, device: u32, bytes: u64, kind: RoomKind, portion: Portion) -> Result<(), String> {
        let mut books = self.books();
        let mut exact = portion == Portion::Exact;
        let mut told = false;
        let mut withdrawn = None;
        loop {
            let Some(state) = books.devices.get_mut(device as usize) else { return Ok(()) };
            let missing = state.used.saturating_add(bytes).saturating_sub(state.room);
            if missing == 0 {
                state.used += bytes;
                if portion == Portion::Slab {
                    state.in_slabs += bytes;
                }
                books.forget(withdrawn);
                if told {
                    warning!("there is room for {} on GPU {device} now", size(bytes));
                }
                return Ok(());
            }
            let wanted = if exact { missing } else { missing.max(slab()) };
            let seq = books.open(device, wanted, kind);
            LINK.send(books.message(seq));
            loop {
                books = self.replied.wait(books).unwrap_or_else(PoisonError::into_inner);
                match books.requests.get(&seq).map(|request| request.verdict.clone()) {
                    None | Some(Verdict::Granted | Verdict::Withdrawn) => break,
                    Some(Verdict::Open) => {}
                    // A slab may have to wait where what is needed of it does not.
                    Some(Verdict::Waiting(_)) if !exact && wanted > missing => {
                        exact = true;
                        books.withdraw(seq);
                        withdrawn = Some(seq);
                        break;
                    }
                    Some(Verdict::Waiting(reason)) if !told => {
                        told = true;
                        warning!("waiting for {} on GPU {device}: {reason}", size(bytes));
                    }
                    Some(Verdict::Waiting(_)) => {}
                    Some(Verdict::Denied(_)) if !exact && wanted > missing => {
                        exact = true;
                        break;
                    }
                    Some(Verdict::Denied(reason)) => {
                        books.requests.remove(&seq);
                        books.forget(withdrawn);
                        return Err(reason);
                    }
                }
            }
            if withdrawn != Some(seq) {
                books.requests.remove(&seq);
            }
        }
    }

    /// An answer of the assigner; one to an unknown question is left out.
    pub(crate) fn handle_reply(&self, reply: RoomReply) {
        let mut books = self.books();
        let verdict = match reply.verdict() {
            RoomVerdict::Granted => Verdict::Granted,
            RoomVerdict::Waiting => Verdict::Waiting(reply.reason),
            RoomVerdict::Denied => Verdict::Denied(reply.reason),
            RoomVerdict::Unspecified => return,
        };
        let Some(request) = books.requests.get_mut(&reply.seq) else { return };
        let is_settled = match request.verdict {
            Verdict::Granted | Verdict::Denied(_) => true,
            Verdict::Withdrawn => verdict != Verdict::Granted,
            Verdict::Open | Verdict::Waiting(_) => false,
        };
        if is_settled {
            return;
        }
        let is_question = matches!(request.kind, RoomKind::ContextSize | RoomKind::ProcessSize);
        if is_question {
            request.bytes = reply.bytes;
        }
        let granted = (verdict == Verdict::Granted && !is_question)
            .then_some((request.device, request.bytes));
        request.verdict = verdict;
        if let Some((device, bytes)) = granted
            && let Some(state) = books.devices.get_mut(device as usize)
        {
            state.room += bytes;
        }
        self.replied.notify_all();
    }

    fn give_back(&self, books: &mut Books, device: u32, bytes: u64, portion: Portion) {
        let Some(state) = books.devices.get_mut(device as usize) else { return };
        state.used = state.used.saturating_sub(bytes);
        if portion == Portion::Slab {
            state.in_slabs = state.in_slabs.saturating_sub(bytes);
        }
        // Nothing is said to a lost assigner: what the client has is stated when it is back.
        if !LINK.is_connected() {
            return;
        }
        let spare = state.room.saturating_sub(state.used);
        let kept = if state.in_slabs == 0 { 0 } else { slab() };
        if spare > 2 * kept {
            state.room -= spare - kept;
            LINK.send(Kind::RoomReturn(RoomReturn {
                device,
                bytes: spare - kept,
                ..RoomReturn::default()
            }));
        }
    }

    /// Room on each device, to be stated when the client reconnects.
    pub(crate) fn rooms(&self) -> Vec<u64> {
        self.books().devices.iter().map(|device| device.room).collect()
    }

    /// `install` takes a new connection into use; what was asked of the old one is asked again.
    pub(crate) fn resume(&self, install: impl FnOnce()) {
        let books = self.books();
        install();
        for (seq, request) in &books.requests {
            if matches!(request.verdict, Verdict::Open | Verdict::Waiting(_)) {
                LINK.send(books.message(*seq));
            }
        }
    }
}

/// An allocation that is out of the books and not yet freed.
pub(crate) struct Taken {
    key: Key,
    holding: Holding,
}

impl Books {
    fn open(&mut self, device: u32, bytes: u64, kind: RoomKind) -> u64 {
        let seq = next_seq();
        self.requests.insert(seq, Request { device, bytes, kind, verdict: Verdict::Open });
        seq
    }

    /// Takes a waiting request back. A grant that crosses this is still heard, before the answer to
    /// whatever is asked next.
    fn withdraw(&mut self, seq: u64) {
        let Some(request) = self.requests.get_mut(&seq) else { return };
        request.verdict = Verdict::Withdrawn;
        let Kind::RoomRequest(message) = self.message(seq) else { return };
        LINK.send(Kind::RoomRequest(RoomRequest { cancel: true, ..message }));
    }

    fn forget(&mut self, seq: Option<u64>) {
        if let Some(seq) = seq {
            self.requests.remove(&seq);
        }
    }

    fn message(&self, seq: u64) -> Kind {
        let request = &self.requests[&seq];
        Kind::RoomRequest(RoomRequest {
            seq,
            device: request.device,
            bytes: request.bytes,
            kind: request.kind.into(),
            cancel: false,
        })
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64),
        _ => format!("{:.1} GiB", bytes as f64 / (1 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_called_by_what_keeps_it_where_it_is() {
        assert_eq!(kind_of("cuMemAllocManaged"), "managed");
        assert_eq!(kind_of("cuArray3DCreate"), "arrays");
        assert_eq!(kind_of("cuMipmappedArrayCreate"), "arrays");
        assert_eq!(kind_of("cuGraphAddMemAllocNode"), "graphs");
        assert_eq!(kind_of("cuModuleLoadData"), "modules");
        assert_eq!(kind_of("cuLibraryLoadData"), "modules");
        assert_eq!(kind_of("cuCtxSetLimit"), "heaps");
        // Nothing is paged in this process, nor captured.
        assert_eq!(kind_of("cuMemCreate"), "plain");
        assert_eq!(kind_of("cuMemAllocAsync"), "plain");
        assert_eq!(kind_of("cuMemAlloc"), "plain");
    }
}
