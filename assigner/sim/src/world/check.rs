//! What must be true of the world, whatever the schedulers believe.
//!
//! Owns: exclusion, epochs, promises, liveness. Does not own: the invariants of a scheduler's own state
//! (`Scheduler::sanity_check`); gangs (`apart`); why leases are asked back (`recalls`).

use std::time::Duration;

use acb_core::{Eligible, Epoch, Event, Gpu, Time};

use super::client::Client;
use super::node::index;
use super::{Lease, World};
use crate::scenario;
use crate::world::client::Life;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When it was seen.
    pub at: Time,
    /// What is wrong.
    pub what: String,
}

/// Until when a client should have started that has its lease, but not all of its memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// When it asked.
    asked: Time,
    /// What it was promised.
    promised: Option<Time>,
    /// If its tenant's guarantee covers it: how long a page-in could go on when it asked.
    guaranteed: Option<Duration>,
}

impl World<'_, '_> {
    pub(super) fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.log(|_| format!("VIOLATION: {what}"));
        self.outcome.violations.push(Violation { at: self.now, what });
    }

    pub(super) fn name(&self, client: usize) -> &str {
        &self.scenario.clients[client].name
    }

    /// A lease was granted: its epoch is new, and it is no later than promised.
    pub(super) fn check_grant(&mut self, node: usize, client: usize, epoch: Epoch, gpus: &[usize]) {
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
        }
        let wanted = self.scenario.clients[client].gpus as usize;
        if gpus.len() != wanted {
            self.violated(format!("{} wants {wanted} GPUs and got {gpus:?}", self.name(client)));
        }
        let scheduler = self.nodes[node].scheduler.as_ref();
        let promised = scheduler.and_then(|s| s.promised_start(super::node::number(client)));
        self.outcome.promises += u64::from(promised.is_some());
        self.check_outrun(node, client, gpus);
        let (asked, guaranteed) = self.check_wait(client);
        self.clients[client].due = Some(Due { asked, promised, guaranteed });
        if self.scenario.clients[client].memory == 0 {
            self.check_ready(client);
        }
    }

    /// While a client waits, no more than one of a lower level starts where it could.
    fn check_outrun(&mut self, node: usize, granted: usize, gpus: &[usize]) {
        // Gangs start as a whole, and before they are told.
        if !self.watch.check
            || !self.gangs.members.is_empty()
            || self.now < self.nodes[node].excused
        {
            return;
        }
        // Nor is in the way who shares a GPU with others.
        if !self.is_alone(granted) {
            return;
        }
        let level = self.level(granted);
        let waits = |at: &usize| {
            self.scenario.clients[*at].node == node
                && self.clients[*at].waits.is_some()
                && self.could_use(*at, gpus)
        };
        let waiting: Vec<usize> = (0..self.clients.len()).filter(waits).collect();
        // Who is entitled goes before all levels; and who waits for several GPUs lends those that are there to whoever gives
        // them back in time.
        let is_plain = |at: &usize| {
            let config = &self.scenario.nodes[node].config;
            let spec = &self.scenario.clients[*at];
            let tenant = config.tenants.iter().find(|tenant| tenant.name == spec.tenant);
            tenant.is_none_or(|tenant| tenant.guarantee == 0) && spec.gpus == 1
        };
        if !is_plain(&granted) || !waiting.iter().all(is_plain) {
            return;
        }
        for at in waiting {
            if self.level(at) > level && !self.is_limited(at) {
                self.clients[at].outrun += 1;
                if self.clients[at].outrun > 1 {
                    let (one, two) = (self.name(at), self.name(granted));
                    self.violated(format!(
                        "{two} starts, the second of a lower level than {one}, which waits"
                    ));
                }
            }
        }
    }

    /// The GPUs that a client is bound to; one that was let in with a lease after a restart, to those of it.
    fn bound_to(&self, client: usize) -> &[Gpu] {
        let client = &self.clients[client];
        if client.bound.is_empty() { &client.adopted } else { &client.bound }
    }

    fn could_use(&self, client: usize, gpus: &[usize]) -> bool {
        let (spec, bound) = (&self.scenario.clients[client], self.bound_to(client));
        gpus.iter().map(|gpu| Gpu(*gpu as u32)).any(|gpu| match &spec.eligible {
            _ if spec.bound || !bound.is_empty() => bound.contains(&gpu),
            Eligible::All => true,
            Eligible::Only(some) => some.contains(&gpu),
        })
    }

    /// Whether its tenant or its queue may not hold all GPUs that there are.
    fn is_limited(&self, client: usize) -> bool {
        let spec = &self.scenario.clients[client];
        let config = &self.scenario.nodes[spec.node].config;
        let tenants = config.tenants.iter().filter(|tenant| tenant.name == spec.tenant);
        let queues = config.queues.iter().filter(|queue| queue.name == spec.queue);
        tenants
            .filter_map(|tenant| tenant.limit)
            .chain(queues.filter_map(|it| it.max_gpus))
            .next()
            .is_some()
    }

    /// A client can start: its memory is there. No later than promised, nor than it is guaranteed.
    fn check_ready(&mut self, client: usize) {
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
    fn stopping(&self, node: usize) -> Duration {
        self.nodes[node].kernel + 2 * self.message()
    }

    /// The longest that a message takes.
    fn message(&self) -> Duration {
        let message = &self.scenario.costs.message;
        // Of exponential delays one in e^25 is longer.
        message.mean.mul_f64(1.0 + 25.0 * message.spread * message.spread.max(1.0))
    }

    /// How long it may take from a grant until all memory is there: what has to go, and all that has to come, over the
    /// link; with both directions at once, all but a chunk of what has to go meanwhile.
    fn switching(&self, client: usize) -> Duration {
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
        let fellows = self.clients[client].bound.iter().map(fellows).max().unwrap_or(1);
        let chunks = 2 * link.chunk; // what is under way for somebody else, and what cannot go meanwhile
        let bytes = match link.duplex {
            true => spec.memory + chunks,
            // What others have to move takes turns with it.
            false => 2 * (spec.memory + chunks) * self.clients.len() as u64,
        };
        let takes = bytes as f64 * fellows as f64 / link.bytes_per_s;
        Duration::from_secs_f64(takes) + *switch + 4 * self.message()
    }

    /// Something went wrong on a node that lasts so long: until its clients have been waited out, nothing was promised.
    pub(super) fn excuse(&mut self, node: usize, lasts: Duration) {
        let config = &self.scenario.nodes[node].config;
        let settle = self.scenario.costs.settle + self.scenario.costs.death;
        let until = self.now.after(lasts + settle + config.drain + 2 * config.quantum);
        self.nodes[node].excused = self.nodes[node].excused.max(until);
    }

    /// Follows what a scheduler is told of its clients.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Acquire { client, .. } => {
                let index = index(*client);
                if !self.clients[index].holds && self.clients[index].waits.is_none() {
                    let guaranteed = self.guaranteed(index);
                    self.come_before(index);
                    self.clients[index].waits = Some((self.now, guaranteed));
                    self.clients[index].outrun = 0;
                }
            }
            Event::Ready { client, .. } => self.check_ready(index(*client)),
            Event::Release { client, .. } => {
                let client = &mut self.clients[index(*client)];
                (client.holds, client.leaves, client.due) = (false, false, None);
            }
            // What it brings along from before a restart is its own, as far as can be seen from here.
            Event::Join { client, spec } => {
                let holds = spec.held.as_ref().is_some_and(|held| held.lease.is_some());
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds, client.leaves) = (None, holds, false);
                client.due = None;
            }
            Event::Leave { client } | Event::Cancel { client } => {
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds) = (None, client.holds && client.lease.is_some());
                client.leaves &= client.holds;
                client.due = client.due.filter(|_| client.holds);
            }
            _ => {}
        }
    }

    /// If all that a client's tenant wants now, this request included, is within its guarantee, and nobody stands between it
    /// and a GPU who is within a guarantee, too: how long a page-in may go on that it has to wait for.
    fn guaranteed(&self, asking: usize) -> Option<Duration> {
        let spec = &self.scenario.clients[asking];
        let mut tenants = self.scenario.nodes[spec.node].config.tenants.iter();
        let tenant = tenants.find(|tenant| tenant.name == spec.tenant)?;
        let wanted = |(at, client): (usize, &Client)| {
            let other = &self.scenario.clients[at];
            let counts = other.node == spec.node && other.tenant == spec.tenant;
            let wants = at == asking || client.holds || client.waits.is_some();
            if counts && wants { other.gpus } else { 0 }
        };
        let wanted = self.clients.iter().enumerate().map(wanted).sum::<u32>();
        let bound = self.bound_to(asking);
        // A gang that is about to start is not asked by anybody, and begins as a whole.
        let is_own = self.gangs.members.is_empty()
            && spec.eligible == Eligible::All
            && spec.gpus == 1
            && wanted <= tenant.guarantee
            && !self.is_limited(asking)
            && (!spec.bound && bound.is_empty() || self.is_lent(asking));
        is_own.then(|| {
            let fellows = (0..self.clients.len()).filter(|other| {
                let shares = || self.bound_to(*other).iter().any(|gpu| bound.contains(gpu));
                self.scenario.clients[*other].node == spec.node && (bound.is_empty() || shares())
            });
            // A page-in is not recalled.
            let coming = fellows.filter(|other| self.clients[*other].due.is_some());
            coming.map(|other| self.switching(other)).max().unwrap_or_default()
        })
    }

    /// Whether the GPU to which a client is bound is free, or held by who has borrowed it; of its own tenant, and of those
    /// that wait within a guarantee, nobody is there.
    fn is_lent(&self, asking: usize) -> bool {
        let (own, bound) = (&self.scenario.clients[asking], self.bound_to(asking));
        let fellows = self.clients.iter().zip(&self.scenario.clients).enumerate();
        let mut fellows = fellows.filter(|(at, (client, other))| {
            let on = self.bound_to(*at);
            let shares = on.iter().any(|gpu| bound.contains(gpu));
            *at != asking && other.node == own.node && (shares || on.is_empty() && client.holds)
        });
        !bound.is_empty()
            && fellows.all(|(at, (client, other))| {
                let waits = client.waits.is_some_and(|(_, guaranteed)| guaranteed.is_some());
                let lent = !client.holds || self.borrowed(own.node, at) > 0;
                let wants = client.holds || client.waits.is_some();
                !wants || other.tenant != own.tenant && !waits && lent
            })
    }

    /// A request was granted: since when it waited, and what its tenant's guarantee says of that.
    fn check_wait(&mut self, client: usize) -> (Time, Option<Duration>) {
        (self.clients[client].holds, self.clients[client].leaves) = (true, false);
        self.clients[client].waits.take().unwrap_or((self.now, None))
    }

    /// A client asks: others may have to wait for it whose tenants' guarantees covered what they asked for until now.
    fn come_before(&mut self, asking: usize) {
        let spec = &self.scenario.clients[asking];
        let config = &self.scenario.nodes[spec.node].config;
        let guaranteed = |name: &str| {
            let tenant = config.tenants.iter().find(|tenant| tenant.name == name);
            tenant.map_or(0, |tenant| tenant.guarantee)
        };
        if guaranteed(&spec.tenant) == 0 {
            return;
        }
        for at in 0..self.clients.len() {
            let other = &self.scenario.clients[at];
            let goes_first = self.level(asking) > self.level(at) || config.fair_share.is_some();
            let (one, two) = (self.bound_to(asking), self.bound_to(at));
            let meet = one.is_empty() || two.is_empty() || one.iter().any(|gpu| two.contains(gpu));
            if other.node == spec.node
                && at != asking
                && goes_first
                && meet
                && let Some((_, guaranteed)) = &mut self.clients[at].waits
            {
                *guaranteed = None;
            }
        }
    }

    /// True if a client's leases are on GPUs that nobody else has meanwhile.
    pub(super) fn is_alone(&self, client: usize) -> bool {
        let spec = &self.scenario.clients[client];
        let config = &self.scenario.nodes[spec.node].config;
        let queue = config.queues.iter().find(|queue| queue.name == spec.queue);
        queue.and_then(|queue| queue.policy).unwrap_or(config.policy).is_exclusive()
    }

    /// A client begins to compute under a lease.
    pub(super) fn check_start(&mut self, node: usize, client: usize, lease: &Lease) {
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

    /// All should have been done by now.
    pub(super) fn overdue(&mut self, due: Duration) {
        let mut clients = self.clients.iter().zip(&self.scenario.clients);
        let late =
            clients.position(|(client, spec)| client.life != Life::Over && spec.arrival <= due);
        if let Some(client) = late {
            let name = self.name(client).to_owned();
            self.violated(format!("{name} is not done after {} s", due.as_secs_f64()));
        }
    }

    /// Nothing will happen any more.
    pub(super) fn stuck(&mut self) {
        let waiting = self.clients.iter().position(|client| client.life == Life::Here);
        if let Some(client) = waiting {
            let name = self.name(client).to_owned();
            self.violated(format!("nothing happens any more, but {name} is not done"));
        }
    }
}
