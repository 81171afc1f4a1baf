//! Memory that graphs allocate while they run: its addresses are known when the
//! node is made, the memory behind them comes with the first run and stays with
//! the instance. What an instance had when it was destroyed is kept for others until it is trimmed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::code::{INVALID_VALUE, OUT_OF_MEMORY, Outcome};
use crate::graph::Task;
use crate::handles::Handle;
use crate::objects::Tables;
use crate::physical::Physical;
use crate::space::{ALIGNMENT, GRANULARITY, RegionKind};
use crate::timeline::Op;

/// What an allocation node asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Allocation {
    pub(crate) address: u64,
    /// As asked for.
    pub(crate) bytes: usize,
    /// The device as the program counts.
    pub(crate) ordinal: usize,
    pub(crate) gpu: usize,
}

impl Allocation {
    /// What it counts.
    pub(crate) fn length(&self) -> usize {
        rounded(self.bytes).unwrap_or(self.bytes)
    }
}

/// What is known of such memory.
#[derive(Default)]
pub(crate) struct GraphMemory {
    /// All addresses.
    addresses: HashSet<u64>,
    /// Those that a run allocated and left allocated.
    live: HashSet<u64>,
    /// What destroyed instances had, each with the end of their last run.
    kept: Vec<(Arc<Physical>, Option<Handle<Op>>)>,
    /// The most that was used and reserved, by GPU.
    high: HashMap<usize, (u64, u64)>,
}

impl GraphMemory {
    /// Whether a run left this allocated.
    pub(crate) fn is_live(&self, address: u64) -> bool {
        self.live.contains(&address)
    }

    /// A run allocates it and leaves it so.
    pub(crate) fn keep(&mut self, address: u64) {
        self.live.insert(address);
    }

    /// Somebody frees it; whether it was there.
    pub(crate) fn let_go(&mut self, address: u64) -> bool {
        self.live.remove(&address)
    }

    /// An instance is destroyed; a run of it may be under way.
    pub(crate) fn keep_of(
        &mut self,
        memory: HashMap<u64, Arc<Physical>>,
        last: Option<Handle<Op>>,
    ) {
        let mut pieces: Vec<Arc<Physical>> = memory.into_values().collect();
        // Several allocations may have had the same, one after the other.
        pieces.sort_by_key(Arc::as_ptr);
        pieces.dedup_by(|one, other| Arc::ptr_eq(one, other));
        self.kept.extend(pieces.into_iter().map(|memory| (memory, last)));
    }

    /// The most that was used and reserved.
    pub(crate) fn high(&mut self, gpu: usize) -> &mut (u64, u64) {
        self.high.entry(gpu).or_default()
    }
}

fn rounded(bytes: usize) -> Option<usize> {
    let unit = if bytes >= GRANULARITY { GRANULARITY } else { ALIGNMENT };
    bytes.checked_next_multiple_of(unit)
}

impl Tables {
    /// Takes addresses for an allocation of a graph's.
    pub(crate) fn graph_allocation(
        &mut self,
        bytes: usize,
        ordinal: usize,
        gpu: usize,
    ) -> Outcome<Allocation> {
        let length = rounded(bytes).ok_or(crate::code::OUT_OF_MEMORY)?;
        let address = self.space.add(length, ALIGNMENT, RegionKind::Graph { gpu })?;
        self.graph_memory.addresses.insert(address);
        Ok(Allocation { address, bytes, ordinal, gpu })
    }

    /// Puts a run's memory where its graph allocated.
    pub(crate) fn map_graph_memory(&mut self, address: u64, memory: Arc<Physical>) {
        let (gpu, length) = (memory.gpu(), memory.length());
        if self.space.mapped_within(address, length) {
            return;
        }
        // The range may be gone with its graph.
        let _ = self.space.map(address, length, memory, 0, 1 << gpu);
        self.note_graph_memory(gpu);
    }

    /// The end of an allocation in stream order.
    pub(crate) fn free_later(&mut self, address: u64) {
        let length = match self.space.region(address) {
            Some(region) if matches!(region.kind, RegionKind::Graph { .. }) => region.length,
            _ => return self.free_pooled(address),
        };
        // Not mapped: its run failed.
        let _ = self.space.unmap(address, length);
    }

    /// The program frees what a run left allocated.
    pub(crate) fn graph_memory_is_let_go(&mut self, address: u64) -> Outcome {
        if self.graph_memory.let_go(address) { Ok(()) } else { Err(INVALID_VALUE) }
    }

    /// Bytes that are allocated now, and bytes that are kept for runs.
    pub(crate) fn graph_memory_in(&self, gpu: usize) -> (u64, u64) {
        let mut pieces: HashMap<*const Physical, u64> = HashMap::new();
        let mut used = 0;
        for &address in &self.graph_memory.addresses {
            if let Some(memory) = self.space.memory_at(address).filter(|one| one.gpu() == gpu) {
                used += memory.length() as u64;
                pieces.insert(Arc::as_ptr(&memory), memory.length() as u64);
            }
        }
        for (_, executable) in self.executables.iter() {
            for memory in executable.memory.values().filter(|one| one.gpu() == gpu) {
                pieces.insert(Arc::as_ptr(memory), memory.length() as u64);
            }
        }
        for (memory, _) in self.graph_memory.kept.iter().filter(|(one, _)| one.gpu() == gpu) {
            pieces.insert(Arc::as_ptr(memory), memory.length() as u64);
        }
        (used, pieces.values().sum())
    }

    /// Keeps the high-water marks.
    pub(crate) fn note_graph_memory(&mut self, gpu: usize) {
        let (used, reserved) = self.graph_memory_in(gpu);
        let high = self.graph_memory.high(gpu);
        *high = (high.0.max(used), high.1.max(reserved));
    }

    /// Gives back what instances keep and do not use.
    pub(crate) fn trim_graph_memory(&mut self, gpu: usize) {
        let idle: Vec<_> = self
            .executables
            .iter()
            .filter(|(_, one)| one.last.is_none_or(|last| !self.timeline.is_pending(last)))
            .map(|(handle, _)| handle)
            .collect();
        for handle in idle {
            if let Some(executable) = self.executables.get_mut(handle) {
                executable.memory.retain(|_, memory| memory.gpu() != gpu);
            }
        }
        self.drop_kept(gpu);
        self.sweep_graph_memory();
    }

    fn drop_kept(&mut self, gpu: usize) {
        self.graph_memory.kept.retain(|(memory, last)| {
            memory.gpu() != gpu || last.is_some_and(|last| self.timeline.is_pending(last))
        });
    }

    /// Memory for an allocation: what a destroyed instance had, or new.
    pub(crate) fn graph_piece(&mut self, gpu: usize, length: usize) -> Outcome<Arc<Physical>> {
        let kept = &self.graph_memory.kept;
        let fits = |(memory, last): &(Arc<Physical>, Option<Handle<Op>>)| {
            // Neither mapped still, nor in a run.
            let is_free = Arc::strong_count(memory) == 1;
            is_free
                && (memory.gpu(), memory.length()) == (gpu, length)
                && last.is_none_or(|last| !self.timeline.is_pending(last))
        };
        if let Some(at) = kept.iter().position(fits) {
            return Ok(self.graph_memory.kept.swap_remove(at).0);
        }
        Physical::new(gpu, length).or_else(|refused| {
            if refused == OUT_OF_MEMORY {
                self.drop_kept(gpu);
            }
            Physical::new(gpu, length)
        })
    }

    /// Gives addresses back that no graph has any more.
    pub(crate) fn sweep_graph_memory(&mut self) {
        if self.graph_memory.addresses.is_empty() || !self.timeline.is_idle() {
            return;
        }
        let mut kept: HashSet<u64> = self.graph_memory.live.clone();
        kept.extend(self.nodes.iter().filter_map(|(_, node)| match node.task {
            Task::Allocate(allocation) => Some(allocation.address),
            _ => None,
        }));
        let gone: Vec<u64> = self.graph_memory.addresses.difference(&kept).copied().collect();
        for address in gone {
            self.graph_memory.addresses.remove(&address);
            self.space.remove(address);
        }
    }
}
