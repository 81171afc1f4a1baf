//! The scheduler: applies events, keeps clients, leases and the queue, and hands out actions.
//!
//! Owns: the state and its transitions. Does not own: who gets which GPU when (`plan`,
//! `placement`), the ledger of room (`rooms`), what status shows (`snapshot`), the invariants
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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::config::{Config, ConfigError, Policy};
use crate::estimator::Estimator;
use crate::event::{Action, ClientSpec, Eligible, Event, Held, Refusal, RoomDenied, RoomVerdict};
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::rooms::{Answer, Patience, Rooms};

/// Place in the queue: the order of arrival. (A priority would be its first part.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// A client that waits for a lease.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) client: ClientId,
    /// How long it will hold the lease, where that is known.
    pub(crate) estimate: Option<Duration>,
    /// Later clients that started on GPUs kept for this one.
    pub(crate) bypassed: u32,
    pub(crate) reservation: Option<Reservation>,
}

/// What a waiting client has been promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reservation {
    /// When GPUs were first kept for it.
    pub(crate) since: Time,
    /// When it will start if the estimates are right.
    pub(crate) expected: Time,
    /// When the last holder in its way is recalled, however wrong the estimates are. Only for the
    /// first in line on its GPUs; never moved back.
    pub(crate) promised: Option<Time>,
}

/// A granted lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) epoch: Epoch,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) granted: Time,
    /// When the holder expects to be done.
    pub(crate) ends: Option<Time>,
    /// A backfilled lease is recalled when the one it went before could start.
    pub(crate) yields: Option<Time>,
    /// What the client had been promised when it waited.
    pub(crate) promised: Option<Time>,
    pub(crate) wanted: bool,
    pub(crate) recalled: Option<Time>,
    /// It was recalled long ago, but the client does not stop.
    pub(crate) stuck: bool,
    /// Its entry in the timers: the recall, or the end of patience after it.
    pub(crate) timer: Option<Time>,
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// GPUs of a lease.
    pub(crate) width: u32,
    pub(crate) eligible: Eligible,
    /// In the client's device order; empty until it is bound.
    pub(crate) bound: Vec<Gpu>,
    /// What its latest lease covered, for affinity.
    pub(crate) last: Vec<Gpu>,
    pub(crate) waiting: Option<Ticket>,
    pub(crate) lease: Option<Lease>,
    /// False while its gang is not ready: its requests wait without a place in the order.
    pub(crate) let_go: bool,
    pub(crate) estimator: Estimator,
    /// When it entered the present state.
    pub(crate) since: Time,
    pub(crate) grants: u64,
    pub(crate) waited: Duration,
    pub(crate) held: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct GpuState {
    pub(crate) holders: Vec<ClientId>,
    /// Clients of an earlier life that may still hold a lease here.
    pub(crate) claimed: BTreeSet<ClientId>,
    /// The waiting client that it is kept for.
    pub(crate) reserved: Option<Ticket>,
    /// Waiting clients that are bound to it.
    pub(crate) waiting: BTreeSet<Ticket>,
    /// Clients bound to it, those expected back included.
    pub(crate) bound: BTreeSet<ClientId>,
    /// Time that the clients now bound to it have held it.
    pub(crate) load: Duration,
    pub(crate) busy_since: Option<Time>,
    pub(crate) held: Duration,
    pub(crate) grants: u64,
}

/// What must be planned again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) gpus: BTreeSet<Gpu>,
    pub(crate) all: bool,
}

/// The scheduler of one node. See the crate's documentation for how to drive it.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    pub(crate) gpus: Vec<GpuState>,
    pub(crate) queue: BTreeMap<Ticket, Waiter>,
    /// Waiting clients that are not bound: any eligible GPU will do.
    pub(crate) floating: BTreeSet<Ticket>,
    pub(crate) rooms: Rooms,
    /// Clients of an earlier life that have not come back.
    pub(crate) expected: BTreeMap<ClientId, Held>,
    /// By time, then by lease, so that names decide nothing.
    pub(crate) timers: BTreeSet<(Time, Epoch, ClientId)>,
    pub(crate) next_epoch: Epoch,
    next_ticket: Ticket,
    pub(crate) dirty: Dirty,
    pub(crate) actions: VecDeque<Action>,
}

impl Scheduler {
    /// A scheduler that knows no clients, but those that the configuration expects back.
    pub fn new(config: Config) -> Result<Scheduler, ConfigError> {
        config.validate()?;
        let patience =
            Patience { max_bypass: config.max_bypass, max_bypass_time: config.max_bypass_time };
        let mut scheduler = Scheduler {
            now: Time(0),
            clients: BTreeMap::new(),
            gpus: vec![GpuState::default(); config.gpus.len()],
            queue: BTreeMap::new(),
            floating: BTreeSet::new(),
            rooms: Rooms::new(config.gpus.iter().map(|gpu| gpu.memory), patience),
            expected: BTreeMap::new(),
            timers: BTreeSet::new(),
            next_epoch: config.first_epoch,
            next_ticket: Ticket(0),
            dirty: Dirty::default(),
            actions: VecDeque::new(),
            config,
        };
        for expected in std::mem::take(&mut scheduler.config.settle.expected) {
            scheduler.expect_back(expected.client, expected.held)?;
        }
        Ok(scheduler)
    }

    /// Applies an event. Time that goes backwards counts as standing still. Events of unknown
    /// clients are ignored: they crossed with the end of that client.
    pub fn handle(&mut self, event: Event, now: Time) {
        self.now = self.now.max(now);
        match event {
            Event::Join { client, spec } => self.join(client, spec),
            Event::Bind { client } => self.bind(client),
            Event::Acquire { client, expected } => self.acquire(client, expected),
            Event::Cancel { client } => self.cancel(client),
            Event::Release { client, epoch, busy } => self.release(client, epoch, busy),
            Event::LetGo { client } => self.let_go(client),
            Event::HoldBack { client } => self.hold_back(client),
            Event::Leave { client } => self.leave(client),
            Event::RoomRequest { client, seq, gpu, bytes } => {
                self.room_request(client, seq, gpu, bytes);
            }
            Event::RoomCancel { client, seq } => {
                if let Some(state) = self.clients.get(&client) {
                    let answers = self.rooms.cancel(client, seq, &state.bound, self.now);
                    self.answer(answers);
                }
            }
            Event::RoomReturn { client, gpu, bytes } => {
                if self.clients.contains_key(&client) && gpu.index() < self.gpus.len() {
                    let answers = self.rooms.give_back(client, gpu, bytes, self.now);
                    self.answer(answers);
                }
            }
            Event::Timer => {}
        }
        self.end_settling();
        self.fire_timers();
        self.plan();
        self.fire_timers(); // whoever came may have found a lease that was long over
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to send [`Event::Timer`], if nothing else happens before.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        let settle = (!self.expected.is_empty()).then_some(self.config.settle.until);
        let recall = self.timers.first().map(|(at, ..)| *at);
        settle.into_iter().chain(recall).min()
    }

    fn join(&mut self, client: ClientId, spec: ClientSpec) {
        if self.clients.contains_key(&client) {
            return; // a number names one client; the first one keeps it
        }
        let expected = self.forget_expected(client);
        let state = Client {
            width: spec.gpus.max(1),
            eligible: self.normalise(spec.eligible),
            bound: Vec::new(),
            last: Vec::new(),
            waiting: None,
            lease: None,
            let_go: spec.gang.is_none(),
            estimator: Estimator::default(),
            since: self.now,
            grants: 0,
            waited: Duration::ZERO,
            held: Duration::ZERO,
        };
        let held = spec.held.filter(|held| !held.bound.is_empty() || held.lease.is_some());
        let admitted =
            self.admissible(&state, &spec.tenant, &spec.queue).and_then(|()| match &held {
                Some(held) => self.adoptable(state.width, held),
                None => Ok(()),
            });
        match admitted {
            Ok(()) => {
                self.clients.insert(client, state);
                if let Some(held) = held {
                    self.adopt(client, held);
                }
            }
            Err(reason) => self.actions.push_back(Action::Refused { client, reason }),
        }
        // Only now, so that nobody took what the client has come back for.
        let answers = self.rooms.resolve(expected.into_iter(), self.now);
        self.answer(answers);
    }

    /// Sorts a list of GPUs and drops what is not there.
    fn normalise(&self, eligible: Eligible) -> Eligible {
        match eligible {
            Eligible::All => Eligible::All,
            Eligible::Only(gpus) => {
                let known: BTreeSet<Gpu> =
                    gpus.into_iter().filter(|gpu| gpu.index() < self.gpus.len()).collect();
                Eligible::Only(known.into_iter().collect())
            }
        }
    }

    fn admissible(&self, client: &Client, tenant: &str, queue: &str) -> Result<(), Refusal> {
        let wanted = client.width;
        let known_queue = self.config.queues.iter().find(|known| known.name == queue);
        if known_queue.is_none() && !queue.is_empty() {
            let known = names(self.config.queues.iter().map(|queue| &queue.name));
            return Err(Refusal::UnknownQueue { queue: queue.to_owned(), known });
        }
        if let Some(most) = known_queue.and_then(|queue| queue.max_gpus.filter(|m| *m < wanted)) {
            return Err(Refusal::BeyondQueue { wanted, queue: queue.to_owned(), most });
        }
        let tenants = &self.config.tenants;
        let known_tenant = tenants.iter().find(|known| known.name == tenant);
        if known_tenant.is_none() && !tenant.is_empty() && !tenants.is_empty() {
            let known = names(tenants.iter().map(|tenant| &tenant.name));
            return Err(Refusal::UnknownTenant { tenant: tenant.to_owned(), known });
        }
        if let Some(most) = known_tenant.and_then(|known| known.limit.filter(|m| *m < wanted)) {
            return Err(Refusal::BeyondTenant { wanted, tenant: tenant.to_owned(), most });
        }
        let policy = known_queue.and_then(|queue| queue.policy).unwrap_or(self.config.policy);
        if wanted > 1 && policy != Policy::GpuAffinity {
            return Err(Refusal::PolicyGivesOne { policy, wanted });
        }
        let eligible = match &client.eligible {
            Eligible::All => self.gpus.len(),
            Eligible::Only(gpus) => gpus.len(),
        };
        let eligible = u32::try_from(eligible).expect("the number of GPUs fits");
        if wanted > eligible {
            return Err(Refusal::TooManyGpus { wanted, eligible });
        }
        Ok(())
    }

    fn bind(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(&id) else { return };
        if client.bound.is_empty() {
            // A client that holds a lease already stays where it is.
            let gpus = match &client.lease {
                Some(lease) => lease.gpus.clone(),
                None => self.place(client),
            };
            self.bind_to(id, gpus);
        }
        let gpus = self.clients[&id].bound.clone();
        self.actions.push_back(Action::Bound { client: id, gpus });
    }

    /// Fixes a client to GPUs for good.
    pub(crate) fn bind_to(&mut self, id: ClientId, gpus: Vec<Gpu>) {
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        client.bound.clone_from(&gpus);
        let (held, waiting) = (client.held, client.waiting);
        for gpu in gpus {
            let state = &mut self.gpus[gpu.index()];
            state.bound.insert(id);
            state.load += held;
            if let Some(ticket) = waiting {
                state.waiting.insert(ticket);
            }
        }
        if let Some(ticket) = waiting {
            self.floating.remove(&ticket);
            let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
            waiter.reservation = None; // it was for other GPUs
            self.dirty.all = true;
        }
    }

    fn acquire(&mut self, id: ClientId, expected: Option<Duration>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
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
        let ticket = self.next_ticket;
        self.next_ticket = Ticket(ticket.0 + 1);
        client.waiting = Some(ticket);
        client.since = self.now;
        let waiter = Waiter { client: id, estimate, bypassed: 0, reservation: None };
        self.queue.insert(ticket, waiter);
        if client.bound.is_empty() {
            self.floating.insert(ticket);
        }
        for gpu in &client.bound {
            self.gpus[gpu.index()].waiting.insert(ticket);
        }
        self.mark(id);
    }

    /// Has everything planned again that the client may run on.
    fn mark(&mut self, id: ClientId) {
        let client = &self.clients[&id];
        self.dirty.all |= client.bound.is_empty();
        self.dirty.gpus.extend(&client.bound);
    }

    fn cancel(&mut self, id: ClientId) {
        if self.clients.get(&id).is_some_and(|client| client.waiting.is_some()) {
            self.mark(id);
            self.unqueue(id);
        }
    }

    fn let_go(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.let_go = true;
        self.mark(id);
    }

    fn hold_back(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.let_go = false;
        if let Some(ticket) = client.waiting {
            let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
            waiter.reservation = None;
        }
        self.mark(id);
    }

    /// Takes a waiting client out of the queue.
    pub(crate) fn unqueue(&mut self, id: ClientId) -> Waiter {
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        let ticket = client.waiting.take().expect("the caller knows that it waits");
        client.waited += self.now.since(client.since);
        client.since = self.now;
        self.floating.remove(&ticket);
        for gpu in &client.bound {
            self.gpus[gpu.index()].waiting.remove(&ticket);
        }
        self.queue.remove(&ticket).expect("a waiting client is in the queue")
    }

    fn release(&mut self, id: ClientId, epoch: Epoch, busy: Option<Duration>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.lease.as_ref().is_none_or(|lease| lease.epoch != epoch) {
            return;
        }
        let lease = client.lease.take().expect("it was just compared");
        let span = self.now.since(lease.granted);
        client.held += span;
        client.since = self.now;
        // A lease that was never used tells nothing about the phases.
        let phase = busy.map_or(span, |busy| busy.min(span));
        if busy.is_none() || !phase.is_zero() {
            client.estimator.observe(phase, &self.config.estimator);
        }
        let is_bound = !client.bound.is_empty();
        client.last.clone_from(&lease.gpus);
        for gpu in &lease.gpus {
            let state = &mut self.gpus[gpu.index()];
            state.holders.retain(|holder| *holder != id);
            if is_bound {
                state.load += span;
            }
            if state.holders.is_empty()
                && let Some(since) = state.busy_since.take()
            {
                state.held += self.now.since(since);
            }
        }
        if let Some(at) = lease.timer {
            self.timers.remove(&(at, epoch, id));
        }
        self.dirty.gpus.extend(lease.gpus);
    }

    /// Gives a client a lease on GPUs that are free.
    pub(crate) fn install(&mut self, id: ClientId, lease: Lease) {
        for gpu in &lease.gpus {
            let state = &mut self.gpus[gpu.index()];
            state.holders.push(id);
            state.busy_since.get_or_insert(self.now);
        }
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        client.since = self.now;
        client.lease = Some(lease);
    }

    fn leave(&mut self, id: ClientId) {
        let claims = self.forget_expected(id);
        if self.clients.contains_key(&id) {
            self.cancel(id);
            if let Some(lease) = &self.clients[&id].lease {
                self.release(id, lease.epoch, None);
            }
            let client = self.clients.remove(&id).expect("it was just there");
            for gpu in &client.bound {
                let state = &mut self.gpus[gpu.index()];
                state.bound.remove(&id);
                state.load -= client.held;
            }
            self.rooms.forget(id, client.bound.iter().copied());
            let answers = self.rooms.resolve(client.bound.iter().copied(), self.now);
            self.answer(answers);
        }
        let answers = self.rooms.resolve(claims.into_iter(), self.now);
        self.answer(answers);
    }

    fn room_request(&mut self, id: ClientId, seq: u64, gpu: Gpu, bytes: u64) {
        let Some(client) = self.clients.get(&id) else { return };
        if client.bound.contains(&gpu) {
            let answers = self.rooms.request(id, seq, gpu, bytes, self.now);
            self.answer(answers);
        } else {
            let verdict = RoomVerdict::Denied(RoomDenied::NotBound);
            self.actions.push_back(Action::Room { client: id, seq, verdict });
        }
    }

    pub(crate) fn answer(&mut self, answers: Vec<Answer>) {
        self.actions.extend(answers.into_iter().map(|answer| Action::Room {
            client: answer.client,
            seq: answer.seq,
            verdict: answer.verdict,
        }));
    }
}

/// Names for a message.
fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
