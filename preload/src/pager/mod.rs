//! Device memory that can be moved: mapped in chunks at addresses that stay, while the content is on the GPU or on the host.
//!
//! ```text
//!  hooks ──> allocate, frees ──┐                       ┌── account, table, victims, ranges, places, contexts: the books, pure
//!            (program threads) ├──> PAGER: one mutex ──┤
//!  link ───> mover ────────────┤    over the books     └── claims: questions to the assigner
//!            (link thread)     │
//!            arena ────────────┘    device: driver calls, never under the mutex
//!            (its own thread)
//! ```
//! Owns: the books and who may look into them; what the assigner says about paged memory, and what it is told.
//! Does not own: memory that cannot be moved, which `memory` counts.
//!
//! A chunk that is being moved is in the state Moving, and belongs to whoever moves it; so the mutex is held for moments only,
//! never across a driver call or a wait.

mod account;
mod addresses;
mod allocate;
mod arena;
mod claims;
mod contexts;
mod device;
mod frees;
mod handed;
mod hashing;
mod holes;
pub(crate) mod imported;
mod kept;
mod making;
mod mapped;
mod mover;
mod names;
mod opening;
mod peers;
mod pins;
mod places;
mod pooled;
mod pools;
mod ranges;
mod report;
mod said;
mod table;
mod victims;

pub(crate) use device::relaxed;
pub(crate) use frees::Freed;
pub(crate) use handed::{Lent, can_share};
pub(crate) use hashing::OVERHEAD;
pub(crate) use mover::Mover;
pub(crate) use opening::{APART, Apart};
pub(crate) use pins::{EXPORTABLE, Pinned, RDMA, Why, has_rdma};
pub(crate) use pools::Home;
pub(crate) use ranges::GRANULE;

use crate::gate::Gate;
use crate::link::LINK;
use crate::log::{debug, warning};
use acb_cuda_abi::CuResult;
use acb_wire::v1::{Evicted, RoomKind, RoomReturn, client_message::Kind};
use account::Word;
use addresses::Addresses;
use arena::ArenaState;
use claims::Claims;
use contexts::{Carrier, Contexts};
use frees::Frees;
use handed::Handed;
use hashing::Hashers;
use kept::Kept;
use names::Names;
use peers::Peers;
use places::Extent;
use pools::Pools;
use ranges::Ranges;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use table::{Table, Trust};

/// The one pager of this process.
pub(crate) static PAGER: Pager = Pager::new();

/// Whether any copies and fills are to be waited for that need not be.
pub(crate) static SYNCHRONOUS: AtomicBool = AtomicBool::new(false);

pub(crate) struct Pager {
    active: AtomicBool,
    books: Mutex<Books>,
    /// Something in the books has changed that somebody may wait for.
    changed: Condvar,
}

/// How the pager works, as Welcome and Bound say.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) chunk_bytes: u64,
    pub(crate) compare: bool,
    /// For each GPU its nearest NUMA node plus one; 0: not known.
    pub(crate) numa_nodes: Vec<u32>,
}

struct Books {
    rules: Rules,
    /// Why nothing is paged in this process; empty: it is.
    off: &'static str,
    /// False: there is no assigner any more, and everything may be on the GPU.
    metered: bool,
    /// The process ends: no driver call is begun any more.
    ended: bool,
    table: Table,
    ranges: Ranges,
    names: Names,
    addresses: Addresses,
    kept: Kept,
    contexts: Contexts,
    peers: Peers,
    claims: Claims,
    frees: Frees,
    handed: Handed,
    pools: Pools,
    arena: ArenaState,
    hashers: Hashers,
    /// Chunks that were made to stay.
    pins: u64,
    /// Numbers of allocations whose copies and fills are waited for.
    synchronous: BTreeSet<u64>,
    moved: Moved,
}

/// What has been moved since the start, in bytes, and what was waited for on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) out: u64,
    pub(crate) inward: u64,
    pub(crate) clean: u64,
    pub(crate) pin_ns: u64,
    /// Chunks whose hash was that of the host copy although they differed.
    pub(crate) lies: u64,
}

/// An allocation, as questions about it are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) device: u32,
    /// 0: of no context.
    pub(crate) context: usize,
    /// Of no other allocation, now or later.
    pub(crate) number: u64,
    /// The pool that it is of, or 0.
    pub(crate) pool: u64,
    /// Types of handles that can be made of it.
    pub(crate) handle_types: u32,
}

/// Why the gate is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A lease has been granted: what was asked back before it goes first.
    Lease,
    /// The lease is held, and its gate opens again for a while.
    Again,
}

impl Pager {
    const fn new() -> Self {
        Pager {
            active: AtomicBool::new(false),
            books: Mutex::new(Books {
                rules: Rules { chunk_bytes: 0, compare: false, numa_nodes: Vec::new() },
                off: "",
                metered: true,
                ended: false,
                table: Table::new(),
                ranges: Ranges::new(),
                names: Names::new(),
                addresses: Addresses::new(),
                kept: Kept::new(),
                contexts: Contexts::new(),
                peers: Peers::new(),
                claims: Claims::new(),
                frees: Frees::new(),
                handed: Handed::new(),
                pools: Pools::new(),
                arena: ArenaState::new(),
                hashers: Hashers::new(),
                pins: 0,
                synchronous: BTreeSet::new(),
                moved: Moved { out: 0, inward: 0, clean: 0, pin_ns: 0, lies: 0 },
            }),
            changed: Condvar::new(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, books: MutexGuard<'a, Books>) -> MutexGuard<'a, Books> {
        self.changed.wait(books).unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether memory is paged in this process.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    // ------------------------------------------------------------ beginning and end

    /// Paging begins, where driver and GPUs can map memory. After the driver's cuInit, before the link thread.
    pub(crate) fn start(&self, rules: Rules) {
        let devices = rules.numa_nodes.len() as u32;
        if rules.chunk_bytes == 0 || devices == 0 {
            return self.stay_off("the GPU assigner pages nothing");
        }
        if let Some(device) = (0..devices).find(|device| !device::can_map(*device)) {
            debug!("GPU {device} cannot map memory piece by piece: allocations stay on the GPU");
            return self.stay_off("a GPU cannot map memory piece by piece");
        }
        let mut books = self.books();
        books.table.accounts = vec![account::Account::default(); devices as usize];
        books.table.nodes.clone_from(&rules.numa_nodes);
        handed::look_for_descriptors(devices);
        for (by, owner) in device::peers(devices) {
            books.peers.can(by, owner);
        }
        books.rules = Rules { chunk_bytes: rules.chunk_bytes.next_multiple_of(GRANULE), ..rules };
        drop(books);
        self.active.store(true, Ordering::Release);
    }

    /// Nothing is paged in this process.
    pub(crate) fn stay_off(&self, why: &'static str) {
        self.books().off = why;
    }

    /// The client has not come into being after all.
    pub(crate) fn stop(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// There is no assigner any more: nothing is metered, nobody waits for claims or credit.
    pub(crate) fn unmeter(&self) {
        if !self.is_active() {
            return;
        }
        let mut books = self.books();
        books.metered = false;
        for account in &mut books.table.accounts {
            account.forgive();
        }
        books.claims.clear();
        self.changed.notify_all();
    }

    /// The process ends: returns when no driver call of the pager's is under way on another thread.
    pub(crate) fn end(&self) {
        if !self.is_active() {
            return;
        }
        let mut books = self.books();
        books.ended = true;
        self.changed.notify_all();
        while books.contexts.is_worked_in() {
            books = self.wait(books);
        }
    }

    // ------------------------------------------------------------ the gate

    /// Opens the gate if all memory is there; under the books' mutex, so that an allocation that finds the gate closed can
    /// leave its chunks absent.
    pub(crate) fn open_gate(&self, gate: &Gate, why: Opening) -> bool {
        self.open_gate_if(gate, why, || true)
    }

    /// The same for a lease that `take` takes; it is called only if the gate can be opened at once, and says whether it is to.
    pub(crate) fn open_gate_for(&self, gate: &Gate, take: impl FnOnce() -> bool) -> bool {
        self.open_gate_if(gate, Opening::Lease, take)
    }

    fn open_gate_if(&self, gate: &Gate, why: Opening, take: impl FnOnce() -> bool) -> bool {
        if !self.is_active() {
            let open = take();
            if open {
                gate.open();
            }
            return open;
        }
        let mut books = self.books();
        let owes = why == Opening::Lease && books.table.accounts.iter().any(|a| a.owed() > 0);
        if owes || !books.table.is_ready() || !take() {
            return false;
        }
        books.table.opened();
        gate.open();
        true
    }

    /// The gate has closed: who waits for credit inside looks up.
    pub(crate) fn gate_closed(&self) {
        if self.is_active() {
            drop(self.books());
            self.changed.notify_all();
        }
    }

    // ------------------------------------------------------------ reconnecting

    /// For each device what is claimed, and what is resident or credited; empty: nothing is paged.
    pub(crate) fn stated(&self) -> (Vec<u64>, Vec<u64>) {
        if !self.is_active() {
            return (Vec::new(), Vec::new());
        }
        self.books().table.accounts.iter().map(|account| account.stated()).unzip()
    }

    /// `install` takes a new connection into use; what was asked of the old one is asked again, what it had asked for is
    /// forgotten, and what has changed since it was stated is said.
    pub(crate) fn resume(&self, install: impl FnOnce()) {
        if !self.is_active() {
            return install();
        }
        let mut books = self.books();
        install();
        for account in &mut books.table.accounts {
            account.forgive();
        }
        books.claims.ask_again();
        books.say();
    }

    // ------------------------------------------------------------ contexts

    /// Makes a context known, and what device it is on.
    pub(crate) fn note_context(&self, handle: usize) {
        if !self.is_active() || handle == 0 || self.books().contexts.knows(handle) {
            return;
        }
        if let Some(device) = device::current_device() {
            self.books().contexts.note(handle, device);
            self.changed.notify_all();
            self.arrived(device);
        }
    }

    /// A context that has just been made: memory of its device can be moved through it.
    pub(crate) fn context_made(&self, handle: usize, device: i32) {
        if self.has_device(device) {
            let id = self.books().contexts.note(handle, device as u32);
            self.load_kernel(id);
            self.changed.notify_all();
            self.arrived(device as u32);
        }
    }

    /// A context is about to be destroyed: returns when nothing is moved in it any more.
    pub(crate) fn retire_context(&self, handle: usize) {
        if !self.is_active() {
            return;
        }
        let mut books = self.books();
        books.contexts.retire(handle);
        while books.contexts.is_busy(handle) && !books.ended {
            books = self.wait(books);
        }
    }

    pub(crate) fn restore_context(&self, handle: usize) {
        if self.is_active() {
            self.books().contexts.restore(handle);
            self.changed.notify_all();
        }
    }

    /// It is destroyed, and with it all memory that was allocated in it.
    pub(crate) fn context_gone(&self, handle: usize) {
        if !self.is_active() {
            return;
        }
        let mut books = self.books();
        let Some(id) = books.contexts.remove(handle) else { return };
        books.hashers.remove(id);
        books.table.places.unpin(id);
        books.frees.context_gone(id);
        for (pool, bytes) in books.ranges.pooled_in(id) {
            books.pools.freed(pool, bytes);
            books.pools.given(pool, bytes);
        }
        let Books { kept, ranges, pools, .. } = &mut *books;
        let is_gone = |it: &ranges::Allocation| {
            ranges.range(it.range).is_some_and(|range| range.context == id)
        };
        for gone in kept.forget(is_gone) {
            pools.given(gone.pool, gone.bytes);
        }
        let ranges = books.ranges.take_context(id);
        let closed = books.peers.context_gone(handle);
        self.changed.notify_all();
        drop(books);
        for (start, range) in ranges {
            self.dispose(start, range);
        }
        for device in closed {
            self.spread_quietly(device);
        }
    }

    /// A call of the pager's has failed in a context. True: no context of the device works any more, and what its memory holds
    /// cannot be reached.
    fn failed_in(&self, carrier: Carrier, device: u32, call: &str, result: CuResult) -> bool {
        if device::is_lost(result) {
            self.break_down(carrier, device, call, result);
        } else if result != CuResult::OUT_OF_MEMORY {
            self.books().contexts.doubt(carrier);
        }
        self.books().contexts.is_bereft(device)
    }

    /// A context has turned out to be broken.
    fn break_down(&self, carrier: Carrier, device: u32, call: &str, result: CuResult) {
        let bereft = {
            let mut books = self.books();
            if !books.contexts.break_down(carrier) {
                return;
            }
            books.contexts.is_bereft(device)
        };
        let cause = device::name(result);
        if bereft {
            warning!(
                "{call} on GPU {device} failed ({cause}): a kernel or a copy has broken the program's CUDA context, what its \
                 memory held is lost, and its next call is told so; end the program and start it anew"
            );
        } else {
            warning!(
                "{call} on GPU {device} failed ({cause}): a CUDA context of the program is broken, and its memory is moved \
                 through another context, where it is whole; end the program and start it anew if it does not expect that"
            );
        }
    }

    /// Begins driver calls in a context; false: it is going, or everything is.
    fn enter(&self, carrier: Carrier) -> bool {
        let mut books = self.books();
        !books.ended && books.contexts.enter(carrier)
    }

    fn leave(&self, carrier: Carrier) {
        if self.books().contexts.leave(carrier) {
            self.changed.notify_all();
        }
    }

    /// Whether a device is one whose memory is paged.
    pub(crate) fn has_device(&self, device: i32) -> bool {
        self.is_active()
            && u32::try_from(device).is_ok_and(|device| device < self.books().devices())
    }

    /// What is known of an address; `None`: it is none of the pager's.
    pub(crate) fn describe(&self, address: u64) -> Option<Described> {
        if !self.is_active() {
            return None;
        }
        let books = self.books();
        if let Some((start, allocation, range)) = books.ranges.find(address) {
            let context = books.contexts.handle(range.context).unwrap_or(0);
            let (bytes, device) = (allocation.requested, range.device);
            let (number, pool) = (allocation.number, allocation.pool);
            let handle_types = 0;
            return Some(Described { start, bytes, device, context, number, pool, handle_types });
        }
        let placed = books.names.at(address)?;
        let chunk = books.table.chunk(placed.chunk)?;
        let (device, handle_types) = (chunk.device, chunk.handle_types);
        let (start, bytes, number) = (placed.address, placed.bytes, placed.name);
        Some(Described { start, bytes, device, context: 0, number, pool: 0, handle_types })
    }

    pub(crate) fn moved(&self) -> Moved {
        if self.is_active() { self.books().moved } else { Moved::default() }
    }

    /// Copies and fills of an allocation are to be waited for, or are not.
    pub(crate) fn set_synchronous(&self, number: u64, on: bool) {
        let mut books = self.books();
        match on {
            true => books.synchronous.insert(number),
            false => books.synchronous.remove(&number),
        };
        SYNCHRONOUS.store(!books.synchronous.is_empty(), Ordering::Relaxed);
    }

    pub(crate) fn is_synchronous(&self, number: u64) -> bool {
        self.books().synchronous.contains(&number)
    }

    /// Bytes in use on a device, as cuMemGetInfo counts.
    pub(crate) fn used(&self, device: u32) -> u64 {
        if !self.is_active() {
            return 0;
        }
        self.books().table.accounts.get(device as usize).map_or(0, |account| account.needed())
    }

    /// Bytes of a device that its chunks take there now.
    pub(crate) fn resident(&self, device: u32) -> u64 {
        if !self.is_active() {
            return 0;
        }
        self.books().table.accounts.get(device as usize).map_or(0, |account| account.taken())
    }
}

impl Books {
    fn devices(&self) -> u32 {
        self.table.accounts.len() as u32
    }

    /// Where extents lie in this process.
    fn pieces(&self, extents: &[Extent]) -> Vec<(usize, u64)> {
        let places = &self.table.places;
        extents.iter().filter_map(|e| Some((places.address(e)?, e.bytes))).collect()
    }

    fn trust(&self) -> Trust {
        if self.rules.compare { Trust::Compare } else { Trust::Hash }
    }

    /// Tells the assigner what has changed. A lost one is told when it is back.
    fn say(&mut self) {
        if !self.metered || !LINK.is_connected() {
            return;
        }
        for device in 0..self.devices() {
            while let Some(word) = self.table.account(device).poll_word() {
                LINK.send(match word {
                    Word::Return { claim, resident } => Kind::RoomReturn(RoomReturn {
                        device,
                        bytes: claim,
                        kind: RoomKind::Paged.into(),
                        resident,
                    }),
                    Word::Evicted(bytes) => {
                        Kind::Evicted(Evicted { device, bytes, failed: String::new() })
                    }
                });
            }
        }
    }
}
