//! Memory of graphs that are gone: the driver keeps it while their last run goes on, and after that until it is told.
//!
//! Owns: telling it, and when the memory is out of the books. Does not own: which graphs are gone (`graphs`), the books (`memory`).
//!
//! Nothing says of which graph the driver's memory is. So what a graph had is counted until the driver has nothing more for graphs
//! on that GPU, or until it was told at a moment at which nothing ran.
#![allow(unsafe_code)] // FFI: asks the driver.

use super::GraphId;
use crate::link::LINK;
use crate::memory::{Key, LEDGER};
use crate::pager::relaxed;
use crate::table::real;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT
const RESERVED: u32 = 2;

/// By device.
static LEAVING: Mutex<BTreeMap<u32, Vec<GraphId>>> = Mutex::new(BTreeMap::new());
static TRIES: Mutex<Tries> = Mutex::new(Tries { failed: 0, next: None });
/// Whether there are any: looked at on ways that are short otherwise.
static ANY: AtomicBool = AtomicBool::new(false);

fn leaving() -> MutexGuard<'static, BTreeMap<u32, Vec<GraphId>>> {
    LEAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// These cannot run any more.
pub(crate) fn add(gone: Vec<(GraphId, u32)>) {
    if gone.is_empty() {
        return;
    }
    let mut leaving = leaving();
    for (graph, device) in gone {
        leaving.entry(device).or_default().push(graph);
    }
    ANY.store(true, Ordering::Relaxed);
    drop(leaving);
    *tries() = Tries::default();
    settle();
}

/// Has the driver give back what it can; what it has given back is out of the books then. Less and less often: it takes from
/// other graphs what they would use again in their next run.
#[inline]
pub(crate) fn settle() {
    if ANY.load(Ordering::Relaxed) && tries().is_due(Instant::now()) {
        settle_where(|device| !LINK.may_run() || reserved(device) == Some(0));
        tries().made(ANY.load(Ordering::Relaxed), Instant::now());
    }
}

fn tries() -> MutexGuard<'static, Tries> {
    TRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When it is tried again.
#[derive(Debug, Default)]
struct Tries {
    failed: u32,
    next: Option<Instant>,
}

impl Tries {
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(10);

    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    fn made(&mut self, in_vain: bool, now: Instant) {
        if !in_vain {
            *self = Tries::default();
            return;
        }
        self.failed = self.failed.saturating_add(1);
        // The first time the program has most likely waited for the graph's last run.
        let doubled = 1_u32.checked_shl(self.failed.saturating_sub(2)).unwrap_or(u32::MAX);
        let pause = (Self::FIRST_PAUSE * doubled).min(Self::LONGEST_PAUSE);
        self.next = (self.failed > 1).then_some(now + pause);
    }
}

/// The same for the link, which saw that nothing ran; `still`: nothing was begun since.
#[inline]
pub(crate) fn settle_drained(still: impl Fn() -> bool) {
    if ANY.load(Ordering::Relaxed) {
        settle_where(|_| still());
    }
}

#[cold]
fn settle_where(is_gone: impl Fn(u32) -> bool) {
    // Of those that are there now: what leaves meanwhile may have run meanwhile.
    let open: Vec<(u32, Vec<GraphId>)> =
        leaving().iter().map(|(device, graphs)| (*device, graphs.clone())).collect();
    for (device, graphs) in open {
        // Another thread may be capturing.
        let gone = relaxed(|| {
            // SAFETY: a device on which a graph has allocated.
            let _ = unsafe { real::cuDeviceGraphMemTrim(device as c_int) };
            is_gone(device)
        });
        if gone {
            forget(device, &graphs);
        }
    }
}

fn forget(device: u32, graphs: &[GraphId]) {
    let mut leaving = leaving();
    if let Some(all) = leaving.get_mut(&device) {
        all.retain(|graph| !graphs.contains(graph));
        if all.is_empty() {
            leaving.remove(&device);
        }
    }
    ANY.store(!leaving.is_empty(), Ordering::Relaxed);
    drop(leaving);
    for GraphId(id) in graphs {
        // Taken by one thread alone, and by nobody if its context is gone.
        if let Some(taken) = LEDGER.take(Key::Graph(*id, device)) {
            LEDGER.freed(taken);
        }
    }
}

/// Bytes that the driver has on a device for graphs.
fn reserved(device: u32) -> Option<u64> {
    let mut bytes = 0_u64;
    // SAFETY: a device; the attribute is a number of 64 bits, on this stack.
    let result = unsafe {
        real::cuDeviceGetGraphMemAttribute(device as c_int, RESERVED, (&raw mut bytes).cast())
    };
    result.is_success().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_again_less_and_less_often() {
        let (mut tries, now) = (Tries::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..40 {
            tries.made(true, now);
            pauses.push(tries.next.map_or(Duration::ZERO, |next| next - now));
        }
        assert_eq!(pauses[..4].iter().map(Duration::as_millis).collect::<Vec<_>>(), [0, 1, 2, 4]);
        assert_eq!(pauses[39], Tries::LONGEST_PAUSE);
        assert!(pauses.is_sorted());
        assert!(!tries.is_due(now) && tries.is_due(now + Tries::LONGEST_PAUSE));
        tries.made(false, now);
        assert!(tries.is_due(now));
    }
}
