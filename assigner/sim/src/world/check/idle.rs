//! Work conservation: no GPU is without work for longer than δ while a request waits that could have it.
//!
//! ```text
//!  idle ──(asked around)── Wanted ──► idle_us is over ── Release ──► assigner ── Grant ──► somebody works
//! ```
//! δ is the holder's `idle_us` and three messages. Where nothing is kept for who waits, whoever holds it is asked 10 ms after
//! the request, and then each time that it has waited twice as long: so much comes on top. A GPU that is kept for a request
//! which waits for others, too, is a reservation, and so is that of a gang's member while its round lasts.

use std::time::Duration;

use acb_core::{Gpu, Time};

use crate::scenario::Release;
use crate::world::World;
use crate::world::client::Life;
use crate::world::node::{index, number};

/// When a request that has none kept asks all holders first.
const ASKS_AFTER: Duration = Duration::from_millis(10);

impl World<'_, '_> {
    /// Which GPUs are without work from now on.
    pub(in crate::world) fn note_idle(&mut self) {
        if !self.watch.check {
            return;
        }
        let mut busy: Vec<Vec<bool>> =
            self.nodes.iter().map(|node| vec![false; node.gpus.len()]).collect();
        for (client, spec) in self.clients.iter().zip(&self.scenario.clients) {
            let Some(lease) = &client.lease else { continue };
            if client.has_work() || client.life != Life::Here || client.stopped {
                for gpu in &lease.gpus {
                    busy[spec.node][gpu.0 as usize] = true;
                }
            }
        }
        for (node, busy) in self.nodes.iter_mut().zip(busy) {
            for (number, (gpu, busy)) in (0..).zip(node.gpus.iter_mut().zip(busy)) {
                gpu.idle = (!busy).then_some(gpu.idle.unwrap_or(self.now));
                let kept = node.scheduler.as_ref().and_then(|it| it.kept_for(Gpu(number)));
                let before = gpu.kept.filter(|(client, _)| Some(*client) == kept);
                gpu.kept = before.or(kept.map(|client| (client, self.now)));
            }
        }
    }

    /// Nothing has happened until now: whether somebody waits for what was idle for too long.
    pub(in crate::world) fn check_idle(&mut self, now: Time) {
        if !self.watch.check {
            return;
        }
        let late = (0..self.clients.len()).find_map(|at| {
            let gpus = self.idle_for(at, now)?;
            Some(format!("{} waits, and {gpus:?} have been idle for too long", self.name(at)))
        });
        if let Some(late) = late {
            self.violated(late);
        }
    }

    /// The GPUs that a client waits for although they have been idle for so long that it should have them.
    fn idle_for(&self, waiting: usize, now: Time) -> Option<Vec<Gpu>> {
        let (client, spec) = (&self.clients[waiting], &self.scenario.clients[waiting]);
        let (since, _) = client.waits?;
        let node = &self.nodes[spec.node];
        let scheduler = node.scheduler.as_ref()?;
        // The members of a gang start together, and who is limited waits for others to give back.
        let is_plain = spec.gang.is_none() && !self.is_limited(waiting);
        if !is_plain || client.life != Life::Here || client.stopped || !client.connected {
            return None;
        }
        let idle = (0..).map(Gpu).zip(&node.gpus).filter(|(gpu, truth)| {
            let Some(idle) = truth.idle else { return false };
            let mut holders = scheduler.holders(*gpu).map(|(holder, _)| index(holder));
            let in_round = holders.any(|holder| self.scenario.clients[holder].gang.is_some());
            let from = idle.max(since).max(node.excused);
            let asked = match truth.kept {
                Some((_, kept)) => from.max(kept),
                None => from.after(ASKS_AFTER.max(from.since(since))),
            };
            let most = asked.after(self.giving_back(spec.node));
            !in_round
                && self.could_use(waiting, &[gpu.0 as usize])
                && truth.kept.is_none_or(|(kept, _)| kept == number(waiting))
                && now > most
        });
        let idle: Vec<Gpu> = idle.map(|(gpu, _)| gpu).collect();
        (idle.len() >= spec.gpus as usize).then_some(idle)
    }

    /// How long it may take from when a holder without work could hear that its GPU is wanted until another has it.
    fn giving_back(&self, node: usize) -> Duration {
        let own = self.scenario.clients.iter().filter(|client| client.node == node);
        let idle = own.map(|client| match client.release {
            Release::AfterPhase => Duration::ZERO,
            Release::WhenWanted(idle) => idle,
        });
        idle.max().unwrap_or_default() + 3 * self.message()
    }
}
