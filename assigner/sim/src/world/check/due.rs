//! Promises and guarantees: who starts later than it was told, and how late that may be.
//!
//! ```text
//!  promised:    the last lease in the way is recalled ──► stopping ──► granted ──► switching ──► ready
//!  guaranteed:  asked ──► others page in, who cannot be recalled ──► the same
//! ```

use std::time::Duration;

use acb_core::{Gpu, Time};

use crate::scenario;
use crate::world::World;

/// Until when a client should have started that has its lease, but not all of its memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::world) struct Due {
    /// When it asked.
    pub(super) asked: Time,
    /// What it was promised.
    pub(super) promised: Option<Time>,
    /// If its tenant's guarantee covers it: how long a page-in could go on when it asked.
    pub(super) guaranteed: Option<Duration>,
}

impl World<'_, '_> {
    /// A client can start: its memory is there. No later than promised, nor than it is guaranteed.
    pub(super) fn check_ready(&mut self, client: usize) {
        let Some(due) = self.clients[client].due.take() else { return };
        let node = self.scenario.clients[client].node;
        if due.asked < self.nodes[node].excused {
            return; // it was promised of clients that behave
        }
        let most = self.stopping(node) + self.switching(client);
        if let Some(promised) = due.promised {
            let late = self.now.since(promised);
            let beyond = late.saturating_sub(most);
            self.outcome.promise_late = self.outcome.promise_late.max(late);
            self.outcome.promise_beyond = self.outcome.promise_beyond.max(beyond);
            self.check_late(client, "what it was promised", beyond);
        }
        if let Some(coming) = due.guaranteed {
            let beyond = self.now.since(due.asked).saturating_sub(most + coming);
            self.outcome.reclaims += 1;
            self.outcome.reclaim_beyond = self.outcome.reclaim_beyond.max(beyond);
            self.check_late(client, "what its tenant is guaranteed", beyond);
        }
    }

    fn check_late(&mut self, client: usize, what: &str, beyond: Duration) {
        if !beyond.is_zero() && self.watch.check {
            let (name, beyond) = (self.name(client), beyond.as_secs_f64() * 1e3);
            self.violated(format!("{name} gets {what} {beyond} ms after kernel and swap"));
        }
    }

    /// How long it may take from a recall until the lease is back: a kernel and two messages.
    pub(super) fn stopping(&self, node: usize) -> Duration {
        self.nodes[node].kernel + 2 * self.message()
    }

    /// The longest that a message takes.
    pub(super) fn message(&self) -> Duration {
        let message = &self.scenario.costs.message;
        // Of exponential delays one in e^25 is longer.
        message.mean.mul_f64(1.0 + 25.0 * message.spread * message.spread.max(1.0))
    }

    /// How long it may take from a grant until all memory is there: all that has to come over the link, while what has to
    /// go does so in the other direction. Three chunks come on top: one that is under way to the GPU for somebody else
    /// (the rest of that one's credit is withdrawn), one of its own that is on its way to the host (it keeps the rest), and
    /// the first that goes, since it makes the room for the first that comes.
    ///
    /// Who shares a GPU shares its link, too: there all comes in that fits on it.
    pub(super) fn switching(&self, client: usize) -> Duration {
        let spec = &self.scenario.clients[client];
        let scenario::Node { config, link, switch, .. } = &self.scenario.nodes[spec.node];
        if spec.memory == 0 {
            return *switch;
        }
        let links = &config.topology.links;
        // Others move memory over the same link, a chunk at a time.
        let fellows = |gpu: &Gpu| match links.get(gpu.0 as usize) {
            None => 1,
            Some(link) => links.iter().filter(|other| *other == link).count(),
        };
        let bound = &self.clients[client].bound;
        let fellows = bound.iter().map(fellows).max().unwrap_or(1);
        let fits = bound.iter().map(|gpu| config.gpus[gpu.0 as usize].memory).max();
        let comes = if self.is_alone(client) { spec.memory } else { fits.unwrap_or_default() };
        let bytes = match link.duplex {
            true => comes + 3 * link.chunk,
            // What others have to move takes turns with it.
            false => 2 * (comes + 3 * link.chunk) * self.clients.len() as u64,
        };
        let takes = bytes as f64 * fellows as f64 / link.bytes_per_s;
        Duration::from_secs_f64(takes) + *switch + 4 * self.message()
    }
}
