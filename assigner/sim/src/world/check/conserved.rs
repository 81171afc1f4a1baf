//! Conservation: every GPU is in one state, every byte in one place, and schedulers count the same as their clients have.
//!
//! ```text
//!  a GPU is   free ──granted──► switching ──memory there──► held ──given back──► switching ──heard──► free
//!             and quarantined from the death of its holder until the process is gone
//! ```
//! So a GPU that a scheduler takes for held, while nobody has a lease on it nor a message about one is under way, is lost:
//! that is what must not be. The lease of a client that was killed is free within Δ = kernel + death of the process, and what
//! its assigner needs to come back.

use acb_core::{ClientId, Gpu};

use crate::world::client::Life;
use crate::world::node::{index, number};
use crate::world::{Happening, Lease, World};

impl World<'_, '_> {
    /// Compares what schedulers count with what their clients have.
    pub(in crate::world) fn check_conserved(&mut self) {
        if !self.watch.check {
            return;
        }
        for node in 0..self.nodes.len() {
            let wrong = self.lost(node).or_else(|| self.unknown(node));
            if let Some(wrong) = wrong.or_else(|| self.miscounted(node)) {
                self.violated(wrong);
            }
        }
    }

    /// A GPU that counts as held, and is not.
    fn lost(&self, node: usize) -> Option<String> {
        let scheduler = self.nodes[node].scheduler.as_ref()?;
        let gpus = (0..).map(Gpu).take(self.nodes[node].gpus.len());
        let mut held = gpus.flat_map(|gpu| {
            let known = scheduler.holders(gpu).filter_map(|(client, epoch)| Some((client, epoch?)));
            known.map(move |known| (gpu, known))
        });
        let (gpu, (client, epoch)) = held.find(|(gpu, (client, epoch))| {
            let truth = &self.clients[index(*client)];
            let holds = |lease: &Lease| lease.epoch == *epoch && lease.gpus.contains(gpu);
            let is_there = matches!(truth.life, Life::Here | Life::Dying);
            let has = is_there && truth.lease.as_ref().is_some_and(holds);
            !has && truth.life != Life::Dying && !self.is_told(node, *client)
        })?;
        Some(format!("{gpu} is lost: {} does not have {epoch}", self.name(index(client))))
    }

    /// A lease that its scheduler does not know.
    fn unknown(&self, node: usize) -> Option<String> {
        let scheduler = self.nodes[node].scheduler.as_ref()?;
        let own = |at: &usize| self.scenario.clients[*at].node == node;
        (0..self.clients.len()).filter(own).find_map(|at| {
            let client = &self.clients[at];
            let lease = client.lease.as_ref()?;
            let sure = client.life == Life::Here && client.connected && !client.unsure;
            let known = |gpu: &Gpu| {
                scheduler.holders(*gpu).any(|holder| holder == (number(at), Some(lease.epoch)))
            };
            let unknown = sure && !lease.gpus.iter().all(known) && !self.is_told(node, number(at));
            unknown.then(|| format!("{} has {}, and nobody knows", self.name(at), lease.epoch))
        })
    }

    /// Memory that is not where it should be, or counted otherwise.
    fn miscounted(&self, node: usize) -> Option<String> {
        let own = |at: &usize| self.scenario.clients[*at].node == node;
        let mut hosted = 0;
        for at in (0..self.clients.len()).filter(own) {
            let client = &self.clients[at];
            for (gpu, paged) in client.bound.iter().zip(&client.memory) {
                hosted += paged.on_host();
                if !paged.adds_up() {
                    return Some(format!("{} has {paged:?} on {gpu}", self.name(at)));
                }
                let Some(scheduler) = &self.nodes[node].scheduler else { continue };
                let counted = scheduler.room(number(at), *gpu);
                let known = client.life == Life::Here && client.connected && !client.unsure;
                if known && counted != paged.room() && !self.is_told(node, number(at)) {
                    let name = self.name(at);
                    return Some(format!("{name} has {paged:?} on {gpu}, {counted:?} is counted"));
                }
            }
        }
        let budget = self.scenario.nodes[node].config.memory.host_budget;
        (hosted > budget).then(|| format!("{hosted} bytes are on the host, of {budget}"))
    }

    /// A message to or from a client is under way.
    fn is_told(&self, node: usize, client: ClientId) -> bool {
        let life = self.nodes[node].life;
        !self.clients[index(client)].inbox.is_empty()
            || self.happenings.iter().any(|entry| match &entry.0.happening {
                Happening::ToClient(to, sent, _) => *sent == life && *to == index(client),
                Happening::Welcome(to, sent) => *sent == life && *to == index(client),
                Happening::ToAssigner(from, sent, _) => *sent == life && *from == index(client),
                _ => false,
            })
    }
}
