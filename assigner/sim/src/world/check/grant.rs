//! Exclusion and epochs: who is granted what, and who computes where.

use acb_core::{Eligible, Epoch, Gpu, Time};

use super::{Due, Use};
use crate::world::node::{index, number};
use crate::world::{Lease, World};

/// How often others were let go before a request, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::world) struct Passed {
    /// The life of the assigner, and the request there. It is the same one when its client gave way and asks again.
    request: (u32, u64),
    times: u32,
    since: Time,
}

impl World<'_, '_> {
    /// A lease was granted: its epoch is new, and it is no later than promised.
    pub(in crate::world) fn check_grant(
        &mut self,
        node: usize,
        client: usize,
        epoch: Epoch,
        gpus: &[usize],
    ) {
        // A gang takes its leases before its members are told: others can be granted later ones meanwhile, elsewhere.
        let exclusive = self.is_alone(client);
        let latest = match self.scenario.clients[client].gang {
            None => self.nodes[node].latest_epoch,
            Some(_) if exclusive => {
                gpus.iter().filter_map(|gpu| self.nodes[node].gpus[*gpu].granted).max()
            }
            Some(_) => None,
        };
        if latest.is_some_and(|latest| epoch <= latest) {
            self.violated(format!("{epoch} of {} is not new", self.name(client)));
        }
        let truth = &mut self.nodes[node];
        truth.latest_epoch = truth.latest_epoch.max(Some(epoch));
        for gpu in gpus {
            truth.gpus[*gpu].granted = truth.gpus[*gpu].granted.max(Some(epoch));
            truth.gpus[*gpu].idle = Some(self.now); // its turn begins
        }
        let wanted = self.scenario.clients[client].gpus as usize;
        if gpus.len() != wanted {
            self.violated(format!("{} wants {wanted} GPUs and got {gpus:?}", self.name(client)));
        }
        let scheduler = self.nodes[node].scheduler.as_ref();
        let promised = scheduler.and_then(|s| s.promised_start(number(client)));
        self.outcome.promises += u64::from(promised.is_some());
        self.note_use(client, Use::Begins);
        self.check_outrun(node, client, gpus);
        self.check_passed(node, client);
        let (asked, guaranteed) = self.check_wait(client);
        self.clients[client].due = Some(Due { asked, promised, guaranteed });
        if self.scenario.clients[client].memory == 0 {
            self.check_ready(client);
        }
    }

    /// Nobody is passed too often, nor for too long: from the first time on, which is no earlier than GPUs are kept for it.
    fn check_passed(&mut self, node: usize, granted: usize) {
        let Some(scheduler) = &self.nodes[node].scheduler else { return };
        let life = self.nodes[node].life;
        for (passed, request) in scheduler.passed_by(number(granted)) {
            let at = index(passed);
            let config = &self.scenario.nodes[node].config;
            if self.scenario.clients[at].gang.is_some() {
                continue; // its patience begins with each round of its gang
            }
            let before = &mut self.clients[at].passed;
            if before.request != (life, request) {
                *before = Passed { request: (life, request), times: 0, since: self.now };
            }
            before.times += 1;
            let Passed { times, since, .. } = *before;
            let is_late = times > 1 && self.now >= since.after(config.max_bypass_time);
            if self.watch.check && (times > config.max_bypass || is_late) {
                let (one, two) = (self.name(granted), self.name(at));
                self.violated(format!("{one} passes {two}, which has been passed {times} times"));
            }
        }
    }

    /// A client that could have all of its k GPUs as soon as they come back waits for k leases of a lower level at most. Those that it
    /// finds there are one on each; later ones start only by an event that has kept GPUs for who goes before it, and then
    /// has that one start elsewhere.
    fn check_outrun(&mut self, node: usize, granted: usize, gpus: &[usize]) {
        // Gangs start as a whole, and before they are told. Nor is in the way who shares a GPU with others.
        if !self.watch.check
            || !self.gangs.members.is_empty()
            || self.now < self.nodes[node].excused
            || !self.is_alone(granted)
        {
            return;
        }
        // Who is entitled goes before all levels. Who is let go before others gives back in time, and how often is counted for
        // these (`check_passed`).
        let scheduler = self.nodes[node].scheduler.as_ref();
        let passes = scheduler.is_some_and(|it| !it.passed_by(number(granted)).is_empty());
        if passes || self.has_guarantee(granted) {
            return;
        }
        let level = self.level(granted);
        for at in 0..self.clients.len() {
            let (client, spec) = (&self.clients[at], &self.scenario.clients[at]);
            let waits = client.waits.is_some() && spec.node == node;
            let is_above = self.level(at) > level && !self.is_limited(at);
            if !waits || !is_above || !self.could_use(at, gpus) {
                continue;
            }
            let most = spec.gpus;
            self.clients[at].outrun =
                if self.could_have_all(at) { self.clients[at].outrun + 1 } else { 0 };
            if self.clients[at].outrun > most {
                let (one, two) = (self.name(at), self.name(granted));
                self.violated(format!("{two} starts before {one}, which waits on a higher level"));
            }
        }
    }

    /// Whether as many GPUs as a client wants are neither kept for who goes before it, nor held by who does not stop. Where they are,
    /// it waits for these, and others may use the rest meanwhile: they are recalled once it can have all.
    fn could_have_all(&self, waiting: usize) -> bool {
        let spec = &self.scenario.clients[waiting];
        if spec.gpus == 1 {
            return true; // where others start, and pass nobody, nothing was kept
        }
        let node = &self.nodes[spec.node];
        let Some(scheduler) = &node.scheduler else { return false };
        let stuck = scheduler.snapshot().gpus;
        let is_left = |gpu: &usize| {
            let first = scheduler.kept_for(Gpu(*gpu as u32)).map(index);
            let goes_before = |first: usize| {
                first != waiting
                    && (self.level(first) >= self.level(waiting) || self.has_guarantee(first))
            };
            self.could_use(waiting, &[*gpu])
                && !stuck[*gpu].stuck
                && !first.is_some_and(goes_before)
        };
        (0..node.gpus.len()).filter(is_left).count() >= spec.gpus as usize
    }

    pub(super) fn could_use(&self, client: usize, gpus: &[usize]) -> bool {
        let (spec, bound) = (&self.scenario.clients[client], self.bound_to(client));
        gpus.iter().map(|gpu| Gpu(*gpu as u32)).any(|gpu| match &spec.eligible {
            _ if spec.bound || !bound.is_empty() => bound.contains(&gpu),
            Eligible::All => true,
            Eligible::Only(some) => some.contains(&gpu),
        })
    }

    /// A client begins to compute under a lease.
    pub(in crate::world) fn check_start(&mut self, node: usize, client: usize, lease: &Lease) {
        let alone = self.is_alone(client);
        let mut wrong = Vec::new();
        for gpu in &lease.gpus {
            let truth = &self.nodes[node].gpus[gpu.0 as usize];
            let other = truth.running.iter().find(|other| alone || self.is_alone(**other));
            if let Some(other) = other {
                let (one, two) = (self.name(client), self.name(*other));
                wrong.push(format!("{one} and {two} compute on {gpu} at a time"));
            }
            let latest = if alone { truth.epoch } else { truth.alone };
            if latest > Some(lease.epoch).max(lease.renewed) {
                let name = self.name(client);
                wrong
                    .push(format!("{name} computes on {gpu} under {}, which is over", lease.epoch));
            }
        }
        for wrong in wrong {
            self.violated(wrong);
        }
    }
}
