//! The arena: pinned host memory for what is paged out, made outside the path of a switch.
//!
//! Owns: the thread `acb-arena`, its regions' mapping and pinning. Does not own: what lies where (`places`).
//!
//! A region is anonymous memory in huge pages, bound to the NUMA node of the GPUs that need it, touched, and then registered
//! with the driver: pinning by cuMemHostAlloc would take the content with it when its context is destroyed, and is the slower
//! way (docs/architecture.md). When the context in which a region was registered goes, it is registered in another.
#![allow(unsafe_code)] // FFI: mmap, madvise, mbind.

use super::contexts::Carrier;
use super::places::RegionId;
use super::ranges::GRANULE;
use super::{Books, PAGER, Pager, device, hashing};
use crate::environment;
use crate::link::LINK;
use crate::log::{info, warning};
use crate::memory::size;
use crate::work;
use acb_cuda_abi::CuResult;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After a failure it is tried again no sooner.
const PAUSE: Duration = Duration::from_millis(500);
/// Loading the hash kernel takes tens of milliseconds where it has to be compiled. Nobody waits longer.
const LOAD: Duration = Duration::from_secs(2);

/// The driver compiles the hash kernel on it, whatever stack the program's thread has; what is not touched costs nothing.
const STACK: usize = 8 << 20;
/// As many as are compared at a time.
const SCRATCH_CHUNKS: u64 = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ArenaState {
    /// What the assigner has said.
    wanted: u64,
    /// What a page-out lacks beyond that.
    demanded: u64,
    started: bool,
    /// No more can be had at present.
    pub(super) exhausted: bool,
    told: bool,
    /// The same for host memory that could not be had at all, until some could.
    short: bool,
}

impl ArenaState {
    pub(super) const fn new() -> Self {
        ArenaState {
            wanted: 0,
            demanded: 0,
            started: false,
            exhausted: false,
            told: false,
            short: false,
        }
    }
}

impl Books {
    /// What came of pinning a region in a context.
    fn pinned(&mut self, id: RegionId, carrier: Carrier, outcome: device::Answer<()>) {
        let gone = self.contexts.handle(carrier.id).is_none();
        if gone || outcome.is_err() && self.contexts.is_leaving(carrier) {
            return; // it is pinned in the next one
        }
        if let Err(cause) = outcome
            && !std::mem::replace(&mut self.arena.told, true)
        {
            warning!(
                "cuMemHostRegister failed ({}): memory is moved to the host unpinned, which is slow; raise the limit of locked \
                 memory (ulimit -l), or give the job more memory",
                device::name(cause)
            );
        }
        // What could not be pinned counts as pinned, or it would be tried for ever, and nothing else be done.
        self.table.places.pinned(id, if outcome.is_ok() { carrier.id } else { 0 });
    }
}

/// What the thread does next.
enum Task {
    /// The hash kernel.
    Load(Carrier),
    /// The hashes of zeros.
    Zeros(u64),
    Grow {
        bytes: u64,
        carrier: Carrier,
        node: u32,
    },
    Repin {
        id: RegionId,
        address: usize,
        bytes: u64,
        carrier: Carrier,
    },
    Shrink {
        id: RegionId,
        address: usize,
        bytes: u64,
        carrier: Carrier,
    },
}

impl Pager {
    /// Arena: so much is to be ready.
    pub(crate) fn arena(&self, bytes: u64) {
        if !self.is_active() {
            return;
        }
        let mut books = self.books();
        books.arena.wanted = bytes;
        books.arena.demanded = 0;
        books.arena.exhausted = false;
        self.start_arena(&mut books);
    }

    /// A page-out has found no place: `missing` bytes more.
    pub(super) fn demand(&self, missing: u64) {
        let mut books = self.books();
        let needed = books.table.places.total() + missing;
        books.arena.demanded = books.arena.demanded.max(needed);
        self.start_arena(&mut books);
    }

    /// Has the hash kernel loaded into a context that has just been made, before the program can launch anything there. The
    /// driver compiles it; that is done on a stack that is known to suffice.
    pub(super) fn load_kernel(&self, context: u64) {
        let mut books = self.books();
        if books.hashers.knows(context) || books.ended {
            return;
        }
        books.hashers.expect(context);
        self.start_arena(&mut books);
        let deadline = Instant::now() + LOAD;
        while books.hashers.is_due(context) && !books.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(books, left);
            books = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn start_arena(&self, books: &mut Books) {
        self.changed.notify_all();
        if books.arena.started || books.ended {
            return;
        }
        books.arena.started = true;
        // A panic ends this thread alone; page-outs then find no places and say so.
        let thread = environment::start_thread(c"acb-arena", STACK, serve);
        if let Err(cause) = thread {
            books.arena.exhausted = true;
            books.hashers.despair();
            warning!(
                "cannot start the thread that pins host memory: {cause}; memory stays on the GPU. Raise the limit of \
                 processes (ulimit -u)"
            );
        }
    }
}

fn serve() {
    device::relax_capture();
    loop {
        let mut books = PAGER.books();
        let task = loop {
            if books.ended {
                return;
            }
            match books.arena_task() {
                Some(task) => break task,
                None => books = PAGER.wait(books),
            }
        };
        drop(books);
        if !perform(task) {
            let books = PAGER.books();
            let _ = PAGER.changed.wait_timeout(books, PAUSE);
        }
    }
}

impl Books {
    /// Whether a kernel could not be loaded before the program's own ran, and can be now.
    pub(super) fn kernel_is_lacking(&self) -> Option<Carrier> {
        let openings = self.table.openings();
        let carriers = (0..self.devices()).filter_map(|device| self.contexts.carrier(device));
        let mut lacking = carriers.filter(|carrier| self.hashers.lacks(carrier.id, openings));
        lacking.next().filter(|_| self.arena.started && !LINK.gate.snapshot().open)
    }

    fn arena_task(&mut self) -> Option<Task> {
        // Whoever has made the context waits.
        if let Some(id) = self.hashers.due() {
            match self.contexts.handle(id) {
                Some(handle) => return Some(Task::Load(Carrier { handle, id })),
                None => self.hashers.remove(id),
            }
        }
        let carriers: Vec<Carrier> =
            (0..self.devices()).filter_map(|device| self.contexts.carrier(device)).collect();
        // Everything needs a context; without one nothing is paged out either.
        let carrier = *carriers.first()?;
        if let Some((id, region)) = self.table.places.unpinned() {
            let (address, bytes) = (region.address, region.bytes);
            return Some(Task::Repin { id, address, bytes, carrier });
        }
        // Chunks that are compared are copied a second time.
        let scratch = if self.rules.compare { SCRATCH_CHUNKS * self.rules.chunk_bytes } else { 0 };
        let wanted = (self.arena.wanted + scratch).max(self.arena.demanded);
        let wanted = wanted.next_multiple_of(GRANULE);
        let total = self.table.places.total();
        if total < wanted && !self.arena.exhausted {
            let bytes = (wanted - total).min(self.rules.chunk_bytes);
            let needs = self.table.accounts.iter().map(|account| account.needed());
            let gpus: Vec<(u32, u64)> = self.table.nodes.iter().copied().zip(needs).collect();
            let node = self.table.places.next_node(&gpus);
            return Some(Task::Grow { bytes, carrier, node });
        }
        if let Some(carrier) = self.kernel_is_lacking() {
            return Some(Task::Load(carrier));
        }
        if self.table.zeros.is_empty() && wanted > 0 {
            return Some(Task::Zeros(self.rules.chunk_bytes));
        }
        // A program that allocates and frees in turns shall not pin each time.
        let slack = if wanted == 0 { 0 } else { (wanted / 8).max(2 * self.rules.chunk_bytes) };
        let keep = wanted + slack;
        // Copies of what is on the GPU are in the way of the regions' end.
        self.table.shed(total.saturating_sub(keep));
        let (id, region) = self.table.places.retire(keep)?;
        let (address, bytes) = (region.address, region.bytes);
        Some(Task::Shrink { id, address, bytes, carrier })
    }
}

/// False: it failed, and is to be tried later.
fn perform(task: Task) -> bool {
    match task {
        Task::Load(carrier) => {
            let openings = PAGER.books().table.openings();
            let mut loaded = Err(CuResult::INVALID_CONTEXT);
            let entered = inside(carrier, || {
                loaded = hashing::load();
                CuResult::SUCCESS
            });
            let mut books = PAGER.books();
            match books.contexts.handle(carrier.id) {
                Some(_) => books.hashers.loaded(carrier.id, loaded, openings),
                None => books.hashers.remove(carrier.id),
            }
            PAGER.changed.notify_all();
            entered.is_ok()
        }
        Task::Zeros(chunk_bytes) => {
            let zeros = hashing::zeros(chunk_bytes);
            PAGER.books().table.zeros.extend(zeros);
            true
        }
        Task::Grow { bytes, carrier, node } => grow(bytes, carrier, node),
        Task::Repin { id, address, bytes, carrier } => repin(id, address, bytes, carrier),
        Task::Shrink { id, address, bytes, carrier } => {
            // Whatever became of the context in which it was pinned, the driver may know it still, and would take other memory
            // that comes to lie there for it.
            let entered = inside(carrier, || {
                let _ = device::unpin(address);
                CuResult::SUCCESS
            });
            if entered.is_err() {
                PAGER.books().table.places.keep(id);
                return false;
            }
            PAGER.books().table.places.remove(id);
            give_back(address, bytes);
            true
        }
    }
}

/// Pins a region anew whose context is gone.
fn repin(id: RegionId, address: usize, bytes: u64, carrier: Carrier) -> bool {
    let mut pinned = Ok(());
    let entered = inside(carrier, || {
        pinned = device::pin(address, bytes);
        if pinned == Err(CuResult::HOST_MEMORY_ALREADY_REGISTERED) {
            // The driver has kept it; as long as what, nobody says.
            pinned = device::unpin(address).and_then(|()| device::pin(address, bytes));
        }
        CuResult::SUCCESS
    });
    if entered.is_err() {
        return false;
    }
    let mut books = PAGER.books();
    books.pinned(id, carrier, pinned);
    PAGER.changed.notify_all();
    true
}

fn grow(bytes: u64, carrier: Carrier, node: u32) -> bool {
    let Some(address) = host_memory(bytes, node) else {
        let cause = std::io::Error::last_os_error();
        let mut books = PAGER.books();
        books.arena.exhausted = true;
        let told = std::mem::replace(&mut books.arena.short, true);
        drop(books);
        PAGER.changed.notify_all();
        let why = format!(
            "no {} of host memory for what is to be moved from the GPU: {cause}; give the job more memory, or lower [memory] in \
             the cluster file",
            size(bytes)
        );
        match told {
            false => warning!("{why}"),
            true => info!("{why}"),
        }
        return false;
    };
    let mut pinned = Err(CuResult::INVALID_CONTEXT);
    let _ = inside(carrier, || {
        pinned = device::pin(address, bytes);
        CuResult::SUCCESS
    });
    let mut books = PAGER.books();
    let id = books.table.places.add(address, bytes, node, None);
    books.arena.short = false;
    books.pinned(id, carrier, pinned);
    let total = books.table.places.total();
    PAGER.changed.notify_all();
    drop(books);
    info!("{} of host memory are ready for what is moved from the GPU", size(total));
    true
}

/// Calls `f` in a context, unless that is going.
fn inside(carrier: Carrier, f: impl FnOnce() -> CuResult) -> Result<(), CuResult> {
    if !PAGER.enter(carrier) {
        return Err(CuResult::INVALID_CONTEXT);
    }
    let result = work::with_context(carrier.handle, f);
    PAGER.leave(carrier);
    if result.is_success() { Ok(()) } else { Err(result) }
}

/// Memory of whole huge pages on a NUMA node (plus one; 0: anywhere), all of it touched.
fn host_memory(bytes: u64, node: u32) -> Option<usize> {
    let length = bytes as usize;
    // One granule more, so that it can begin at a huge page.
    let whole = length + GRANULE as usize;
    // SAFETY: a new anonymous mapping, anywhere.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            whole,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start as usize;
    let address = start.next_multiple_of(GRANULE as usize);
    let cut = |from: usize, to: usize| {
        if to > from {
            // SAFETY: part of the mapping above that is outside of what is kept.
            unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
        }
    };
    cut(start, address);
    cut(address + length, start + whole);
    let place = address as *mut libc::c_void;
    // SAFETY: the mapping above; advice that need not be taken. A child of fork has no use for it.
    unsafe {
        libc::madvise(place, length, libc::MADV_HUGEPAGE);
        libc::madvise(place, length, libc::MADV_DONTFORK);
    }
    if node > 0 {
        bind(address, length, node - 1);
    }
    // SAFETY: as above.
    let populated = unsafe { libc::madvise(place, length, libc::MADV_POPULATE_WRITE) };
    if populated == 0 {
        return Some(address);
    }
    let cause = std::io::Error::last_os_error();
    if cause.raw_os_error() == Some(libc::ENOMEM) {
        give_back(address, bytes);
        return None;
    }
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        info!(
            "madvise(MADV_POPULATE_WRITE) failed ({cause}), which Linux has from 5.14 on: host memory is touched page by page, and is \
             ready later"
        );
    }
    touch(address, length);
    Some(address)
}

/// Has every page made, for registering memory that is not there yet takes the driver longer.
fn touch(address: usize, length: usize) {
    const PAGE: usize = 4096;
    for at in (address..address + length).step_by(PAGE) {
        // SAFETY: inside a mapping of the caller's that nobody else knows.
        unsafe { (at as *mut u8).write_volatile(0) };
    }
}

/// The node is preferred; where it is full, others do.
fn bind(address: usize, length: usize, node: u32) {
    const PREFERRED: libc::c_int = 1;
    let mut mask = [0u64; 16];
    let Some(word) = mask.get_mut(node as usize / 64) else { return };
    *word |= 1 << (node % 64);
    // SAFETY: a mapping of this process, and a mask on this stack; it only says where pages are to come from.
    let refused = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            length,
            PREFERRED,
            mask.as_ptr(),
            mask.len() * 64,
            0,
        )
    } != 0;
    static TOLD: AtomicBool = AtomicBool::new(false);
    if refused && !TOLD.swap(true, Ordering::Relaxed) {
        info!(
            "mbind of host memory to NUMA node {node} failed ({}): it lies where this thread runs, and copies may be slower; allow \
             the job that node's memory (cpuset), or mbind (seccomp)",
            std::io::Error::last_os_error()
        );
    }
}

fn give_back(address: usize, bytes: u64) {
    // SAFETY: a region that nothing lies in any more.
    unsafe { libc::munmap(address as *mut libc::c_void, bytes as usize) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_is_there() {
        const BYTES: usize = 4 << 20;
        // SAFETY: a new anonymous mapping, anywhere; what it is asked about is on this stack.
        let resident = unsafe {
            let (read_write, new) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), BYTES, read_write, new, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let mut pages = [0u8; BYTES / 4096];
            assert_eq!(libc::mincore(start, BYTES, pages.as_mut_ptr()), 0);
            assert!(pages.iter().any(|page| page & 1 == 0), "nothing was touched yet");
            touch(start as usize, BYTES);
            assert_eq!(libc::mincore(start, BYTES, pages.as_mut_ptr()), 0);
            libc::munmap(start, BYTES);
            pages
        };
        assert!(resident.iter().all(|page| page & 1 == 1));
    }
}
