//! Which GPUs: for a client that is bound for good, and for one that takes what comes.
//!
//! Owns: the orders of preference. Does not own: which GPUs may be used at all (`plan`). The place
//! for topology and for the cost of moving memory is here.

use std::time::Duration;

use crate::event::Eligible;
use crate::ids::Gpu;
use crate::scheduler::{Client, Scheduler};

impl Scheduler {
    /// The GPUs that a client may run on: those it is bound to, else all that are eligible.
    pub(crate) fn candidates<'a>(
        &self,
        client: &'a Client,
    ) -> impl Iterator<Item = Gpu> + Clone + use<'a> {
        let (all, listed) = match (&client.bound[..], &client.eligible) {
            ([], Eligible::All) => (self.config.gpus.len(), &[][..]),
            ([], Eligible::Only(gpus)) => (0, &gpus[..]),
            (bound, _) => (0, bound),
        };
        (0..).take(all).map(Gpu).chain(listed.iter().copied())
    }

    /// Chooses the GPUs that a client is bound to: the least loaded.
    pub(crate) fn place(&self, client: &Client) -> Vec<Gpu> {
        let mut gpus: Vec<Gpu> = self.candidates(client).collect();
        gpus.sort_by_key(|&gpu| self.load(gpu));
        gpus.truncate(client.width as usize);
        gpus.sort();
        gpus
    }

    /// How loaded a GPU is: clients that are bound to it or hold it, time the bound ones have used
    /// it, room; the number breaks ties.
    fn load(&self, gpu: Gpu) -> (usize, Duration, u64, Gpu) {
        let state = &self.gpus[gpu.index()];
        let visitors = state.holders.iter().filter(|holder| !state.bound.contains(holder)).count();
        (state.bound.len() + visitors, state.load, self.rooms.used(gpu), gpu)
    }

    /// Among GPUs that a client could start on now, the lower the better: where it was last, where
    /// fewer hold and are bound.
    pub(crate) fn preference(&self, client: &Client, gpu: Gpu) -> (bool, usize, usize, Gpu) {
        let state = &self.gpus[gpu.index()];
        (!client.last.contains(&gpu), state.holders.len(), state.bound.len(), gpu)
    }
}
