//! The memory of clients: what the interposer's pager does, and what moving takes on the links.
//!
//! ```text
//!            Credit, and a place on the link
//!  on the host ─────────────────────────────► on the GPU      new memory needs no copy in,
//!        ▲                                        │           unchanged memory none out
//!        └──────── Evict, and a place on it ◄─────┘
//! ```
//!
//! Owns: who has how many bytes where, in truth. Does not own: who may (the scheduler says by credits and evictions).

use std::time::Duration;

use acb_core::{Event, Gpu, Rest, Room, RoomVerdict, Time};

use super::client::Life;
use super::{Happening, World};
use crate::scenario;

/// A client's memory on one of its GPUs. What is on the GPU, on the host, and never used is all that it claimed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paged {
    pub(super) claimed: u64,
    /// On the GPU.
    pub(super) resident: u64,
    /// What of that the host has, unchanged.
    clean: u64,
    /// On the host alone.
    hosted: u64,
    /// Never used: it is nowhere.
    fresh: u64,
    /// May come to the GPU.
    pub(super) credit: u64,
    /// Asked back.
    owed: u64,
    /// Under way to the GPU: it has its room there already.
    coming: u64,
    /// Under way to the host: it still has its room on the GPU.
    going: u64,
}

impl Paged {
    fn absent(&self) -> u64 {
        self.claimed - self.resident - self.coming
    }

    /// What the scheduler counts as resident.
    pub(super) fn room(&self) -> Room {
        let resident = self.resident + self.coming + self.credit;
        Room { fixed: 0, claimed: self.claimed, resident }
    }

    /// On the GPU, on the host, and on the way between them is all that it has, each byte in one place.
    pub(super) fn adds_up(&self) -> bool {
        let here = self.resident + self.coming;
        here + self.hosted + self.fresh == self.claimed
            && self.going <= self.resident
            && self.clean <= here
    }

    /// Bytes that are on the host alone, or on their way there.
    pub(super) fn on_host(&self) -> u64 {
        self.hosted + self.going
    }

    /// Bytes that it has on the GPU in truth.
    pub(super) fn on_gpu(&self) -> u64 {
        self.resident + self.coming
    }
}

/// When a link is free, to the GPU and from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkTruth {
    inwards: Time,
    outwards: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

impl World<'_, '_> {
    /// Claims all memory, on the GPUs that it has been bound to.
    pub(super) fn claim(&mut self, index: usize) {
        let bytes = self.scenario.clients[index].memory;
        if bytes == 0 || !self.clients[index].memory.is_empty() {
            return;
        }
        let gpus = self.clients[index].bound.clone();
        self.clients[index].memory = vec![Paged::default(); gpus.len()];
        self.clients[index].claims = gpus.len();
        for (seq, gpu) in (0..).zip(gpus) {
            let client = super::node::number(index);
            self.send(index, Event::Claim { client, seq, gpu, bytes });
        }
    }

    /// Answer to a claim.
    pub(super) fn claimed(&mut self, index: usize, seq: u64, verdict: &RoomVerdict) {
        let bytes = self.scenario.clients[index].memory;
        let client = &mut self.clients[index];
        match verdict {
            RoomVerdict::Granted => {
                if let Some(paged) = client.memory.get_mut(seq as usize) {
                    (paged.claimed, paged.fresh) = (bytes, bytes);
                    client.claims = client.claims.saturating_sub(1);
                    self.drive(index);
                }
            }
            RoomVerdict::Denied(reason) => {
                self.outcome.refused[index] = Some(reason.to_string());
                self.outcome.out_of_memory += 1;
                self.finish(index);
                self.fail_gang(index);
            }
            RoomVerdict::Waiting { .. } => {}
        }
    }

    /// True if all that a client claimed is on its GPUs; otherwise it is on its way, or waits for credit.
    pub(super) fn is_resident(&self, index: usize) -> bool {
        let client = &self.clients[index];
        client.memory.iter().all(|paged| paged.resident == paged.claimed && paged.owed == 0)
    }

    /// Whether it waits for an answer to a claim.
    pub(super) fn is_claiming(&self, index: usize) -> bool {
        let client = &self.clients[index];
        let wants = self.scenario.clients[index].memory > 0 && self.scenario.clients[index].bound;
        wants && (client.memory.is_empty() || client.claims > 0)
    }

    /// It computes: what it may write is not as the host has it any more.
    pub(super) fn write_memory(&mut self, index: usize) {
        let read_only = self.scenario.clients[index].read_only;
        for paged in &mut self.clients[index].memory {
            // What was never on the host is not clean, whether or not it is written.
            paged.clean = paged.clean.min(read_only.min(paged.claimed));
        }
    }

    pub(super) fn credited(&mut self, index: usize, gpu: Gpu, bytes: u64) {
        if let Some(at) = self.position(index, gpu) {
            self.clients[index].memory[at].credit += bytes;
            self.pump(index, at);
        }
    }

    pub(super) fn evict(&mut self, index: usize, gpu: Gpu, bytes: u64) {
        if let Some(at) = self.position(index, gpu) {
            self.clients[index].memory[at].owed += bytes;
            self.pump(index, at);
        }
    }

    /// Gives back the credit that no chunk is under way for.
    pub(super) fn withdraw(&mut self, index: usize, gpu: Gpu) {
        let Some(at) = self.position(index, gpu) else { return };
        let resident = std::mem::take(&mut self.clients[index].memory[at].credit);
        if resident > 0 {
            let client = super::node::number(index);
            self.send(index, Event::ClaimReturn { client, gpu, bytes: 0, resident });
        }
    }

    /// What was asked for may stay, but for a chunk that is under way.
    pub(super) fn stay(&mut self, index: usize, gpu: Gpu) {
        let Some(at) = self.position(index, gpu) else { return };
        self.clients[index].memory[at].owed = 0;
        self.pump(index, at);
        self.drive(index);
    }

    fn position(&self, index: usize, gpu: Gpu) -> Option<usize> {
        let client = &self.clients[index];
        client.bound.iter().position(|bound| *bound == gpu).filter(|at| *at < client.memory.len())
    }

    /// What was asked and told before a restart is forgotten.
    pub(super) fn forget_asked(&mut self, index: usize) {
        for paged in &mut self.clients[index].memory {
            paged.owed = 0;
        }
    }

    /// Goes on moving, after it was stopped.
    pub(super) fn pump_all(&mut self, index: usize) {
        for at in 0..self.clients[index].memory.len() {
            self.pump(index, at);
        }
    }

    /// Moves what is to be moved: first from the GPU, then to it.
    fn pump(&mut self, index: usize, at: usize) {
        let client = &mut self.clients[index];
        // What was credited before a restart that it slept through may be another's by now.
        if client.life != Life::Here || client.stopped || client.unsure || client.running.is_some()
        {
            return;
        }
        let (gpu, node) = (client.bound[at], self.scenario.clients[index].node);
        let chunk = self.scenario.nodes[node].link.chunk;
        let paged = &mut client.memory[at];
        if paged.owed > 0 {
            let unused = paged.credit.min(paged.owed);
            if unused > 0 {
                paged.credit -= unused;
                paged.owed -= unused;
                self.evicted(index, gpu, unused);
            }
            let paged = &mut self.clients[index].memory[at];
            if paged.going > 0 || paged.owed == 0 {
                return;
            }
            if paged.resident == 0 && paged.coming > 0 {
                return; // what comes goes back first thing
            }
            if paged.resident == 0 {
                // More than it has, said when it had more.
                paged.owed = 0;
                return self.pump(index, at);
            }
            let bytes = chunk.min(paged.owed).min(paged.resident);
            paged.owed -= bytes;
            paged.going = bytes;
            let copied = bytes - bytes.min(paged.clean); // unchanged chunks go first
            self.outcome.moved.1 += copied;
            let done = self.occupy(node, gpu, copied, Way::Out);
            self.plan_at(done, Happening::Moved(index, at, Way::Out));
            return;
        }
        if paged.coming > 0 || paged.going > 0 || paged.credit == 0 {
            return;
        }
        let bytes = chunk.min(paged.credit).min(paged.absent());
        if bytes == 0 {
            let resident = std::mem::take(&mut paged.credit);
            let client = super::node::number(index);
            return self.send(index, Event::ClaimReturn { client, gpu, bytes: 0, resident });
        }
        let copied = bytes.min(paged.hosted);
        // New memory comes all at once.
        let bytes = if copied == 0 { paged.credit.min(paged.absent()) } else { bytes };
        self.check_memory(node, gpu, bytes);
        if self.is_short(index, at, bytes) {
            return self.pump(index, at);
        }
        let paged = &mut self.clients[index].memory[at];
        paged.credit -= bytes;
        paged.coming = bytes;
        paged.hosted -= copied;
        paged.fresh -= bytes - copied;
        paged.clean += copied;
        self.outcome.moved.0 += copied;
        let done = self.occupy(node, gpu, copied, Way::In);
        self.plan_at(done, Happening::Moved(index, at, Way::In));
    }

    /// A chunk has been moved.
    pub(super) fn moved(&mut self, index: usize, at: usize, way: Way) {
        if self.clients[index].life != Life::Here {
            return;
        }
        let gpu = self.clients[index].bound[at];
        let paged = &mut self.clients[index].memory[at];
        match way {
            Way::In => {
                paged.resident += std::mem::take(&mut paged.coming);
                self.pump(index, at);
                self.drive(index);
            }
            Way::Out => {
                let bytes = std::mem::take(&mut paged.going);
                paged.resident -= bytes;
                paged.hosted += bytes;
                paged.clean -= bytes.min(paged.clean);
                self.evicted(index, gpu, bytes);
                self.pump(index, at);
                self.drive(index);
            }
        }
    }

    fn evicted(&mut self, index: usize, gpu: Gpu, bytes: u64) {
        let client = super::node::number(index);
        self.send(index, Event::Evicted { client, gpu, bytes, rest: Rest::Comes });
    }

    /// Takes the next place on a GPU's link; when the copy is done.
    fn occupy(&mut self, node: usize, gpu: Gpu, bytes: u64, way: Way) -> Time {
        let scenario::Node { config, link, .. } = &self.scenario.nodes[node];
        let number = config.topology.links.get(gpu.0 as usize).map_or(gpu.0, |link| *link);
        let truth = self.nodes[node].links.entry(number).or_default();
        if bytes == 0 {
            return self.now;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / link.bytes_per_s);
        let free = match (way, link.duplex) {
            (Way::In, true) => truth.inwards,
            (Way::Out, true) => truth.outwards,
            (_, false) => truth.inwards.max(truth.outwards),
        };
        let done = free.max(self.now).after(takes);
        match way {
            Way::In => truth.inwards = done,
            Way::Out => truth.outwards = done,
        }
        done
    }

    /// No more is on a GPU than fits, when so much more comes.
    fn check_memory(&mut self, node: usize, gpu: Gpu, more: u64) {
        if !self.watch.check {
            return;
        }
        let sum = self.on_gpu(node, gpu) + more;
        let capacity = self.scenario.nodes[node].config.gpus[gpu.0 as usize].memory;
        if sum > capacity {
            self.violated(format!("{sum} bytes are on {gpu}, which has {capacity}"));
        }
    }
}
