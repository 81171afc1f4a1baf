//! The scheduler: applies events, keeps clients, leases and the queue, and hands out actions.
//!
//! Owns: the state and its transitions; those of who waits are in `line`. Does not own: who gets which GPU when (`order`, `plan`, `recall`,
//! `placement`), what tenants and queues hold (`tenant`, `queue`), the ledger of device memory (`memory`), what status shows (`snapshot`), the invariants
//! (`sanity`).
//!
//! ```text
//!          Acquire               Grant                contended          quantum over
//!  idle ────────────► waiting ────────────► holding ───────────► wanted ─────────────► recalled
//!   ▲  ▲                 │                     │                    │                  │  │ drain over
//!   │  └──── Cancel ─────┘                     │                    │                  │  └──────► stuck
//!   └──────────────────────── Release ─────────┴────────────────────┴──────────────────┴────────────┘
//!     Leave ends every state; a recalled or stuck holder keeps its GPUs until it releases or leaves
//! ```

mod line;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::config::{Config, ConfigError, Policy};
use crate::estimator::Estimator;
use crate::event::{Action, Cause, ClientSpec, Eligible, Event, Held, Recalls, Refusal};
use crate::few::GpuList;
use crate::gang::{GangSpec, Gangs, Member, NodeEvent};
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::memory::{Memory, Patience};
use crate::order::{Level, Line, Place};
use crate::queue::Queues;
use crate::recall::NEVER;
use crate::sorted::Sorted;
use crate::span::Span;
use crate::table::Table;
use crate::tenant::{Shares, Tenants, Used};

pub(crate) use crate::state::{
    Bypass, Client, Dirty, GaveWay, GpuState, Lease, Reservation, Ticket, Tickets, Waiter,
};

/// The scheduler of one node. See the crate's documentation for how to drive it.
#[derive(Clone, Debug)]
#[repr(C, align(64))] // see `state`
pub struct Scheduler {
    pub(crate) now: Time,
    pub(crate) next_epoch: Epoch,
    /// When something is due.
    deadline: Option<Time>,
    pub(crate) gpus: Vec<GpuState>,
    /// GPUs that nobody holds.
    pub(crate) unheld: usize,
    pub(crate) dirty: Dirty,
    next_ticket: Ticket,
    /// Gangs have been heard of.
    has_gangs: bool,
    /// Clients of an earlier life are waited for.
    pub(crate) settling: bool,
    pub(crate) actions: VecDeque<Action>,
    /// By time, then by lease, so that names decide nothing.
    pub(crate) timers: Sorted<(Time, Epoch, ClientId)>,
    /// Clients that wait for any GPU, by when they ask all holders.
    pub(crate) askers: Sorted<(Time, Ticket)>,
    pub(crate) clients: Table<ClientId, Client>,
    pub(crate) queue: Table<Ticket, Waiter>,
    /// Waiting clients that are not bound: any eligible GPU will do.
    pub(crate) floating: Line,
    pub(crate) tenants: Tenants,
    pub(crate) queues: Queues,
    /// Clients of an earlier life that have not come back.
    pub(crate) expected: BTreeMap<ClientId, (Held, Option<GangSpec>)>,
    /// Leases that are over: their memory is the next ones'.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Lease>>,
    pub(crate) shares: Option<Shares>,
    pub(crate) recalls: Recalls,
    pub(crate) config: Config,
    pub(crate) memory: Memory,
    pub(crate) gangs: Gangs,
}

impl Scheduler {
    /// A scheduler that knows no clients, but those that the configuration expects back.
    pub fn new(config: Config) -> Result<Scheduler, ConfigError> {
        config.validate()?;
        let patience =
            Patience { max_bypass: config.max_bypass, max_bypass_time: config.max_bypass_time };
        let mut scheduler = Scheduler {
            now: Time(0),
            clients: Table::default(),
            gpus: vec![GpuState::default(); config.gpus.len()],
            unheld: config.gpus.len(),
            has_gangs: false,
            settling: false,
            spare: Vec::new(),
            queue: Table::default(),
            floating: Line::default(),
            tenants: Tenants::new(&config.tenants),
            queues: Queues::new(&config.queues, config.policy),
            shares: config.fair_share.map(Shares::new),
            recalls: Recalls::default(),
            memory: Memory::new(config.gpus.iter().map(|gpu| gpu.memory), patience, &config.memory),
            gangs: Gangs::new(&config),
            expected: BTreeMap::new(),
            timers: Sorted::default(),
            askers: Sorted::default(),
            next_epoch: config.first_epoch,
            next_ticket: Ticket::default(),
            deadline: None,
            dirty: Dirty::default(),
            actions: VecDeque::new(),
            config,
        };
        for expected in std::mem::take(&mut scheduler.config.settle.expected) {
            scheduler.has_gangs |= expected.gang.is_some();
            scheduler.expect_back(expected)?;
        }
        for (gang, left) in std::mem::take(&mut scheduler.config.settle.departed) {
            scheduler.gangs.node.restore(&gang, left);
            scheduler.has_gangs = true;
        }
        scheduler.deadline = scheduler.earliest();
        Ok(scheduler)
    }

    /// Applies an event. Time that goes backwards counts as standing still. Events of unknown
    /// clients are ignored: they crossed with the end of that client.
    pub fn handle(&mut self, event: Event, now: Time) {
        self.now = self.now.max(now);
        self.warm_event(&event);
        if let Some(shares) = &mut self.shares {
            shares.tick(self.now);
        }
        match event {
            Event::Join { client, spec } => self.join(client, spec),
            Event::Bind { client } => self.bind(client),
            Event::MemoryHint { client, bytes } => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.memory_limit = bytes;
                }
            }
            Event::Acquire { client, expected } => self.acquire(client, expected),
            Event::Cancel { client } => {
                if !self.withdraw_in_gang(client) {
                    self.cancel(client);
                }
            }
            Event::Release { client, epoch, busy } => self.release(client, epoch, busy),
            Event::GangConnected(session) => self.tell_gangs(NodeEvent::Connected(session)),
            Event::GangDisconnected => self.tell_gangs(NodeEvent::Disconnected),
            Event::GangOrder(order) => self.tell_gangs(NodeEvent::Order(order)),
            Event::Leave { client } => self.leave(client),
            Event::Timer => {}
            event => self.handle_memory(event),
        }
        self.end_settling();
        self.fire_lateness();
        self.fire_timers();
        self.plan();
        self.settle_memory();
        self.ask_around();
        // Whoever came may have found a lease that was long over.
        while self.goes_on() || self.fire_timers() {
            self.plan();
            self.settle_memory();
        }
        self.deadline = self.earliest();
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to send [`Event::Timer`], if nothing else happens before.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn earliest(&self) -> Option<Time> {
        let settling = self.settling && !self.expected.is_empty();
        let settle = settling.then_some(self.config.settle.until);
        let recall = self.timers.first().map(|(at, ..)| *at);
        let memory = self.memory.late_at();
        let gangs = self.has_gangs.then(|| self.gang_deadline()).flatten();
        let asks = self.askers.first().map(|(at, _)| *at);
        settle.into_iter().chain(recall).chain(asks).chain(memory).chain(gangs).min()
    }

    /// True if something has to be planned again.
    fn goes_on(&mut self) -> bool {
        if self.has_gangs { self.follow_gangs() } else { !self.dirty.is_empty() }
    }

    fn tell_gangs(&mut self, event: NodeEvent) {
        self.has_gangs = true;
        self.gangs.news.push_back(event);
    }

    fn join(&mut self, client: ClientId, spec: ClientSpec) {
        self.has_gangs |= spec.gang.is_some();
        if self.clients.contains_key(&client) {
            return; // a number names one client; the first one keeps it
        }
        let returns = self.expected.get(&client).is_some_and(|(_, gang)| gang.is_some());
        let lapsed = self.expected.get(&client).is_some_and(|(held, _)| held.lease.is_none());
        let awaited = self.forget_expected(client);
        match self.admit(client, &spec) {
            Ok(state) => {
                self.queues.of_mut(state.queue).clients += 1;
                self.clients.insert(state);
                if let Some(held) = spec.held.filter(holds) {
                    self.adopt(client, held, spec.unbound, lapsed);
                }
                if let Some(gang) = &spec.gang {
                    self.join_gang(client, gang, returns);
                }
            }
            Err(reason) => {
                if let Some(gang) = &spec.gang {
                    self.refuse_gang(gang, &reason);
                }
                self.actions.push_back(Action::Refused { client, reason });
            }
        }
        self.gangs.news.extend(awaited.map(NodeEvent::Awaited));
    }

    /// Drops what is not there from a list of GPUs, and what is there twice.
    fn normalise(&self, eligible: Eligible) -> Eligible {
        match eligible {
            Eligible::All => Eligible::All,
            Eligible::Only(gpus) => {
                let mut known: Vec<Gpu> = Vec::with_capacity(gpus.len());
                for gpu in gpus {
                    if gpu.index() < self.gpus.len() && !known.contains(&gpu) {
                        known.push(gpu);
                    }
                }
                Eligible::Only(known)
            }
        }
    }

    /// The client that a newcomer becomes, unless what it wants can never be.
    fn admit(&mut self, id: ClientId, spec: &ClientSpec) -> Result<Client, Refusal> {
        let wanted = spec.gpus.max(1);
        let Some(queue_id) = self.queues.find(&spec.queue) else {
            let known = names(self.queues.iter().map(|(_, queue)| &queue.name));
            return Err(Refusal::UnknownQueue { queue: spec.queue.clone(), known });
        };
        let Some(tenant_id) = self.tenants.find(&spec.tenant) else {
            let known = names(self.tenants.iter().map(|(_, tenant)| &tenant.name));
            return Err(Refusal::UnknownTenant { tenant: spec.tenant.clone(), known });
        };
        let (queue, tenant) = (self.queues.of(queue_id), self.tenants.of(tenant_id));
        let policy = queue.policy;
        if wanted > 1 && policy != Policy::GpuAffinity {
            return Err(Refusal::PolicyGivesOne { policy, wanted });
        }
        let eligible = self.normalise(spec.eligible.clone());
        let count = match &eligible {
            Eligible::All => self.gpus.len(),
            Eligible::Only(gpus) => gpus.len(),
        };
        let count = u32::try_from(count).expect("the number of GPUs fits");
        if wanted > count {
            return Err(Refusal::TooManyGpus { wanted, eligible: count });
        }
        if let Some(most) = queue.max_gpus.filter(|most| *most < wanted) {
            return Err(Refusal::BeyondQueue { wanted, queue: queue.name.clone(), most });
        }
        if let Some(most) = tenant.limit.filter(|most| *most < wanted) {
            return Err(Refusal::BeyondTenant { wanted, tenant: tenant.name.clone(), most });
        }
        let held = spec.held.as_ref().filter(|held| holds(held));
        if let Some(held) = held {
            self.adoptable(wanted, spec.memory_limit, held)?;
        } else if let Some(most) = queue.max_clients.filter(|most| *most <= queue.clients) {
            // Who comes back has been let in before.
            return Err(Refusal::QueueFull { queue: queue.name.clone(), most });
        }
        let level = Level { queue: queue.priority, own: spec.priority };
        Ok(Client {
            id,
            width: wanted,
            tenant: tenant_id,
            queue: queue_id,
            level,
            used: Used::default(),
            gave_way: None,
            cut: NEVER,
            eligible,
            bound: GpuList::default(),
            last: GpuList::default(),
            waiting: None,
            lease: None,
            member: spec.gang.as_ref().map(|gang| Box::new(Member::new(gang, level))),
            let_go: spec.gang.is_none(),
            is_refused: false,
            estimator: Estimator::default(),
            peaks: None,
            since: self.now,
            grants: 0,
            waited: Span::default(),
            held: Span::default(),
            memory_limit: spec.memory_limit,
            switch: Span::default(),
        })
    }

    fn bind(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(&id) else { return };
        if client.bound.is_empty() {
            // A client that holds a lease already stays where it is.
            let gpus = match &client.lease {
                Some(lease) => lease.gpus.to_vec(),
                None => self.place(client),
            };
            self.bind_to(id, gpus);
        }
        let gpus = self.clients[&id].bound.to_vec();
        self.actions.push_back(Action::Bound { client: id, gpus });
    }

    /// Fixes a client to GPUs for good.
    pub(crate) fn bind_to(&mut self, id: ClientId, gpus: Vec<Gpu>) {
        let waiting = self.clients[&id].waiting;
        if waiting.is_some() {
            self.step_out(id);
        }
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        client.bound = GpuList::from(&gpus[..]);
        let held = client.held;
        let limit = client.memory_limit.unwrap_or(u64::MAX);
        for gpu in gpus {
            self.memory.open(id, gpu, limit);
            let state = &mut self.gpus[gpu.index()];
            state.bound.insert(id);
            state.load += held;
        }
        if client.member.is_some() {
            let gpus = client.bound.iter().copied().collect();
            self.gangs.news.push_back(NodeEvent::Bound(id, gpus));
        }
        if let Some(ticket) = waiting {
            let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
            waiter.reservation = None; // it was for other GPUs
            waiter.kept_since = NEVER;
            waiter.place.unpromised = true;
            self.step_in(id);
            self.dirty.all = true;
        }
    }

    fn acquire(&mut self, id: ClientId, expected: Option<Duration>) {
        if self.clients.get(&id).is_none_or(|client| client.is_refused) || self.ask_in_gang(id) {
            return;
        }
        let client = self.clients.get_mut(&id).expect("it was just there");
        if client.lease.is_some() {
            return;
        }
        let estimate = expected.or_else(|| client.estimator.estimate(&self.config.estimator));
        if let Some(ticket) = client.waiting {
            let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
            waiter.estimate = estimate;
            self.mark(id);
            return;
        }
        self.stand_in_line(id, None);
        let ticket = self.clients[&id].waiting.expect("it stands in line now");
        let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
        waiter.estimate = estimate;
        self.mark(id);
    }

    pub(crate) fn release(&mut self, id: ClientId, epoch: Epoch, busy: Option<Duration>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.lease.as_ref().is_none_or(|lease| lease.epoch != epoch) {
            return;
        }
        let mut lease = client.lease.take().expect("it was just compared");
        for gpu in &client.bound {
            self.memory.end(id, *gpu);
        }
        let span = self.now.since(lease.granted);
        let mut spent = lease.spent;
        spent += self.now.since(lease.started);
        let is_early = match lease.cause {
            Some(Cause::Priority | Cause::Quota) => spent < self.config.quantum.into(),
            // What it had others give up for it counts until it has had its quantum: else it could do so again, and they, for ever.
            Some(Cause::Promise) => {
                !lease.made_way.is_empty() && spent < self.config.quantum.into()
            }
            // Its gang's round ended. What is left of a quantum must be worth a round.
            Some(Cause::Gang) => spent < (self.config.quantum / 2).into(),
            None => !lease.is_told && spent < (self.config.quantum / 2).into(),
            Some(_) => false,
        };
        if let (true, Some(ticket)) = (is_early, lease.ticket) {
            let made_way = lease.made_way.clone();
            let bypass = lease.bypass;
            let request = GaveWay { ticket, at: self.now, spent, made_way, bypass };
            client.gave_way = Some(Box::new(request));
        }
        client.cut = lease.recalled.map_or(NEVER, |_| self.now);
        client.held += span;
        client.since = self.now;
        // A lease that was never used tells nothing about the phases.
        let phase = busy.map_or(span, |busy| busy.min(span));
        if busy.is_none() || !phase.is_zero() {
            client.estimator.observe(phase, &self.config.estimator);
            if !self.queues.of(client.queue).policy.is_exclusive() {
                let peak = lease.gpus.iter().map(|gpu| self.memory.of(id, *gpu));
                let peak = peak.map(|room| room.fixed.saturating_add(room.claimed)).max();
                client.peaks.get_or_insert_default().observe(peak.unwrap_or(0), &self.config.peaks);
            }
        }
        let (is_bound, shares) = (!client.bound.is_empty(), self.shares);
        client.last.clone_from(&lease.gpus);
        for gpu in &lease.gpus {
            let state = &mut self.gpus[gpu.index()];
            state.holders.remove(&id);
            state.cut = lease.recalled.and(shares).map(|_| id);
            if is_bound {
                state.load += span;
            }
            if state.holders.is_empty()
                && let Some(since) = state.busy_since.take()
            {
                self.unheld += 1;
                state.held += self.now.since(since);
            }
        }
        if let Some(at) = lease.timer {
            self.timers.remove(&(at, epoch, id));
        }
        let counted = self.counts(span, lease.gpus.len());
        let client = self.clients.get_mut(&id).expect("it was just there");
        client.used.0 += counted;
        let (tenant, queue) = (client.tenant, client.queue);
        let tenant = self.tenants.of_mut(tenant);
        tenant.used.0 += counted / f64::from(tenant.weight);
        tenant.active -= 1;
        tenant.held -= lease.width();
        if lease.recalled.is_some() {
            tenant.leaving -= lease.width();
        }
        let queue = self.queues.of_mut(queue);
        queue.held -= lease.width();
        self.dirty.all |= tenant.is_bounded() || queue.max_gpus.is_some();
        self.dirty.gpus.extend(lease.gpus.iter().copied());
        if lease.is_told {
            self.reseat(id, &lease);
        }
        (lease.passed, lease.made_way) = Default::default();
        self.spare.push(lease);
    }

    /// Gives a client a lease on GPUs that are free.
    pub(crate) fn install(&mut self, id: ClientId, lease: Lease) {
        for gpu in &lease.gpus {
            if self.memory.begin(id, *gpu, self.now) {
                self.dirty.gpus.insert(*gpu);
            }
            let state = &mut self.gpus[gpu.index()];
            self.unheld -= usize::from(state.holders.is_empty());
            state.holders.push(id);
            state.busy_since.get_or_insert(self.now);
        }
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        client.since = self.now;
        let tenant = self.tenants.of_mut(client.tenant);
        tenant.active += 1;
        tenant.held += lease.width();
        let queue = self.queues.of_mut(client.queue);
        queue.held += lease.width();
        // What one may do depends on what others hold; see `plan`.
        self.dirty.all |= tenant.is_bounded() || queue.max_gpus.is_some();
        client.lease = Some(match self.spare.pop() {
            Some(mut spare) => {
                *spare = lease;
                spare
            }
            None => Box::new(lease),
        });
    }

    pub(crate) fn leave(&mut self, id: ClientId) {
        self.give_up(id);
        if let Some(client) = self.clients.get_mut(&id) {
            if client.member.take().is_some() {
                self.gangs.news.push_back(NodeEvent::Leave(id));
            }
            self.cancel(id);
            if let Some(lease) = &self.clients[&id].lease {
                self.release(id, lease.epoch, None);
            }
            let client = self.clients.remove(&id).expect("it was just there");
            self.queues.of_mut(client.queue).clients -= 1;
            for gpu in &client.bound {
                let state = &mut self.gpus[gpu.index()];
                state.bound.remove(&id);
                state.load -= client.held;
            }
            // What it had may be what others wait for; afterwards nobody knows that it had something.
            for gpu in &client.bound {
                self.replan_memory(*gpu);
            }
            self.memory.forget(id, client.bound.iter().copied());
        }
    }
}

/// True if there is something in it.
fn holds(held: &Held) -> bool {
    !held.bound.is_empty() || held.lease.is_some()
}

/// Names for a message.
fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
