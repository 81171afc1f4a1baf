//! Memory of programs outside, which no scheduler knows: page-ins do not find it.
//!
//! ```text
//!  it comes ──► a page-in finds too little ── Short ──► assigner ──(looks)── Used ──► others move, or it is free again
//!                     ▲                                                        │
//!                     └───────────────────────── Credit ◄──────────────────────┘
//! ```
//! The assigner looks as the daemon does: 1 ms after the first that was short, then once a second until nothing is missing; and
//! every 5 s in any case, which matters here only while there is such memory.
//!
//! Does not own: what moves (`memory`).

use std::time::Duration;

use acb_core::{Event, Gpu, Scheduler};

use super::client::Life;
use super::{Happening, World};

/// What a look takes.
const LOOK: Duration = Duration::from_millis(1);
/// Until the next one, while memory is missing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Until the next one in any case.
const WATCH: Duration = Duration::from_secs(5);

impl World<'_, '_> {
    /// Programs outside take so much of what is free on a GPU.
    pub(super) fn come_outside(&mut self, node: usize, gpu: Gpu, bytes: u64, lasts: Duration) {
        let bytes = bytes.min(self.free(node, gpu));
        self.log(|it| format!("{bytes} bytes of {gpu} of {} are taken", it.nodes[node].name));
        self.excuse(node, lasts + LOOK_AGAIN);
        self.nodes[node].gpus[gpu.0 as usize].outside += bytes;
        self.plan(lasts, Happening::OutsideGone(node, gpu, bytes));
        self.plan(WATCH, Happening::Watch(node, gpu));
    }

    /// They have gone.
    pub(super) fn go_outside(&mut self, node: usize, gpu: Gpu, bytes: u64) {
        self.log(|it| format!("{bytes} bytes of {gpu} of {} are free", it.nodes[node].name));
        self.nodes[node].gpus[gpu.0 as usize].outside -= bytes;
    }

    /// A page-in of `bytes` is beyond what a GPU has free: credit for more goes back. False: there is room.
    pub(super) fn is_short(&mut self, index: usize, at: usize, bytes: u64) -> bool {
        let (gpu, node) = (self.clients[index].bound[at], self.scenario.clients[index].node);
        let free = self.free(node, gpu);
        if bytes <= free || self.nodes[node].gpus[gpu.0 as usize].outside == 0 {
            return false;
        }
        let chunk = self.scenario.nodes[node].link.chunk;
        let paged = &mut self.clients[index].memory[at];
        let bytes = paged.credit.saturating_sub(free).max(chunk.min(bytes));
        paged.credit -= bytes;
        self.outcome.short += 1;
        let client = super::node::number(index);
        self.send(index, Event::Short { client, gpu, bytes });
        true
    }

    /// A scheduler has heard that a client was short.
    pub(super) fn look_after(&mut self, node: usize, gpu: Gpu) {
        if self.missing(node, gpu) > 0 && self.nodes[node].looked_after.insert(gpu) {
            self.plan(LOOK, Happening::Look(node, self.nodes[node].life, gpu));
        }
    }

    /// Somebody looks after what is missing.
    pub(super) fn look(&mut self, node: usize, life: u32, gpu: Gpu) {
        if self.nodes[node].life != life {
            return;
        }
        self.tell_used(node, gpu);
        if self.missing(node, gpu) > 0 {
            self.plan(LOOK_AGAIN, Happening::Look(node, life, gpu));
        } else {
            self.nodes[node].looked_after.remove(&gpu);
        }
    }

    /// A look that would have come anyway; the last one when all is known.
    pub(super) fn watch_outside(&mut self, node: usize, gpu: Gpu) {
        let outside = self.nodes[node].gpus[gpu.0 as usize].outside;
        let goes_on = outside > 0 || self.missing(node, gpu) > 0;
        self.tell_used(node, gpu);
        if goes_on {
            self.plan(WATCH, Happening::Watch(node, gpu));
        }
    }

    /// Tells a scheduler what is in use on a GPU. After that no more is missing than programs outside have.
    fn tell_used(&mut self, node: usize, gpu: Gpu) {
        if self.nodes[node].scheduler.is_none() {
            return;
        }
        let outside = self.nodes[node].gpus[gpu.0 as usize].outside;
        let bytes = outside + self.on_gpu(node, gpu);
        self.tell(node, Event::Used { gpu, bytes });
        let missing = self.missing(node, gpu);
        if self.watch.check && missing > outside {
            self.violated(format!(
                "{missing} bytes are missing on {gpu}, of which {outside} are taken"
            ));
        }
    }

    fn missing(&self, node: usize, gpu: Gpu) -> u64 {
        self.nodes[node].scheduler.as_ref().map_or(0, |it: &Scheduler| it.missing(gpu))
    }

    /// Bytes of clients on a GPU, in truth.
    pub(super) fn on_gpu(&self, node: usize, gpu: Gpu) -> u64 {
        let clients = self.clients.iter().zip(&self.scenario.clients);
        let there = clients.filter(|(client, spec)| {
            spec.node == node && matches!(client.life, Life::Here | Life::Dying)
        });
        let memory = there.flat_map(|(client, _)| client.bound.iter().zip(&client.memory));
        memory.filter(|(on, _)| **on == gpu).map(|(_, paged)| paged.on_gpu()).sum()
    }

    /// What nobody has.
    fn free(&self, node: usize, gpu: Gpu) -> u64 {
        let capacity = self.scenario.nodes[node].config.gpus[gpu.0 as usize].memory;
        let outside = self.nodes[node].gpus[gpu.0 as usize].outside;
        capacity.saturating_sub(outside + self.on_gpu(node, gpu))
    }
}
