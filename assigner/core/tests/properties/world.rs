//! The world around a scheduler under test: clients, their truth about what they hold, and a check
//! of every action against it.

mod agrees;
mod recalls;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use acb_core::*;

use crate::history::{Deed, SLOTS, Setup, Step, What, Who};
use crate::memory::{Memory, Paged};
use agrees::check_gpus;
use written::Writer;

/// How clients are numbered: the order of numbers must not matter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names {
    Forward,
    Backward,
}

/// A client, as it sees itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    id: u64,
    pub(crate) present: bool,
    /// The assigner has started again, and the client has not joined the new one.
    pub(crate) away: bool,
    /// It has been away for longer than an assigner waited for it.
    overslept: bool,
    /// What it says that it holds need not have been kept for it.
    may_be_overtaken: bool,
    pub(crate) who: Who,
    pub(crate) bound: Vec<Gpu>,
    pub(crate) waiting: bool,
    pub(crate) lease: Option<Lease>,
    pub(crate) room: BTreeMap<Gpu, u64>,
    pub(crate) memory: Memory,
    /// Requests for room without a final answer.
    pub(crate) requests: BTreeMap<u64, (Gpu, u64)>,
    pub(crate) next_seq: u64,
}

impl Client {
    /// Whether its memory on a GPU may be where it is for good, as far as the scheduler knows.
    fn stays_on(&self, gpu: Gpu) -> bool {
        let paged = self.memory.of(gpu);
        let is_asked = paged.pinned || paged.failed || paged.owed > 0;
        self.present && (self.away || self.memory.deaf || is_asked)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) epoch: Epoch,
    pub(crate) gpus: Vec<Gpu>,
    granted: Time,
    wanted: bool,
    recalled: bool,
}

/// When a client that is done gives its lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gives {
    AfterPhase,
    /// When it is told that somebody waits.
    WhenWanted,
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    names: Names,
    pub(crate) scheduler: Scheduler,
    pub(crate) clients: Vec<Client>,
    /// Claims that have not been answered.
    pub(crate) claims: BTreeMap<(usize, u64), (Gpu, u64)>,
    /// Who was asked by the latest event to move memory, and where.
    pub(crate) evictions: Vec<(usize, Gpu)>,
    /// Drivers have taken memory unasked.
    grew: bool,
    /// What page-ins did not find on each GPU: nobody may be credited that, until it is measured to be free.
    pub(crate) outside: BTreeMap<Gpu, u64>,
    /// Counts uses of GPUs.
    uses: u64,
    now: Time,
    latest_epoch: Epoch,
    next_id: u64,
    settled: Time,
    /// Whose latest lease but one was cut short for others: the rest of its quantum is what counts.
    gave_way: [bool; SLOTS],
    /// How many of lower levels have started where each waits, since nobody was left who goes before it.
    outrun: [u32; SLOTS],
    /// What the latest event had asked back.
    recalls: Vec<(usize, ClientId)>,
    /// Somebody is back, and is told once more what it was told of its lease.
    pub(crate) says_again: bool,
    /// What the assigner would begin its next life with.
    written: Writer,
    /// All actions, with clients named by their slots.
    pub(crate) log: Vec<String>,
}

impl World {
    pub(crate) fn new(setup: &Setup, names: Names) -> World {
        World {
            setup: setup.clone(),
            names,
            scheduler: Scheduler::new(setup.config(|tenant| tenant_name(names, tenant)))
                .expect("the configuration is valid"),
            clients: vec![Client::default(); SLOTS],
            claims: BTreeMap::new(),
            evictions: Vec::new(),
            grew: false,
            outside: BTreeMap::new(),
            uses: 0,
            now: Time(0),
            latest_epoch: Epoch(0),
            next_id: 0,
            settled: Time(0),
            gave_way: [false; SLOTS],
            outrun: [0; SLOTS],
            recalls: Vec::new(),
            says_again: false,
            written: Writer::default(),
            log: Vec::new(),
        }
    }

    fn name(&self, id: u64) -> ClientId {
        ClientId(match self.names {
            Names::Forward => id,
            Names::Backward => 1_000_000 - id,
        })
    }

    pub(crate) fn id(&self, slot: usize) -> ClientId {
        self.name(self.clients[slot].id)
    }

    /// A client has just used its GPUs, or come to them.
    fn use_gpus(&mut self, slot: usize) {
        self.uses += 1;
        self.clients[slot].memory.used = self.uses;
    }

    pub(crate) fn slot(&self, client: ClientId) -> usize {
        let named = |other: &Client| other.present && self.name(other.id) == client;
        self.clients.iter().position(named).expect("actions concern clients that are there")
    }

    pub(crate) fn step(&mut self, step: &Step) {
        self.now = self.now.after(Duration::from_millis(step.wait_ms));
        let slot = step.slot;
        if let What::Restart = step.what {
            return self.restart();
        }
        if let What::Timer = step.what {
            self.now = self.now.max(self.scheduler.poll_deadline().unwrap_or(self.now));
            return self.tell(Event::Timer);
        }
        if let What::Measured { gpu, freed, new } = step.what {
            return self.measured(Gpu(gpu), freed, new);
        }
        if self.clients[slot].away {
            return self.step_away(slot, &step.what);
        }
        let client = self.name(self.clients[slot].id);
        let deaf = self.clients[slot].memory.deaf;
        if deaf && !matches!(step.what, What::Memory(_) | What::Leave) {
            return;
        }
        match &step.what {
            What::Join { who } if !self.clients[slot].present => self.join(slot, who),
            _ if !self.clients[slot].present => {}
            What::Join { .. } => {} // it is there already
            What::Bind => self.tell(Event::Bind { client }),
            What::Acquire { expected_ms } => {
                if !self.clients[slot].waiting {
                    self.outrun[slot] = 0;
                }
                self.clients[slot].waiting |= self.clients[slot].lease.is_none();
                let expected = expected_ms.map(Duration::from_millis);
                self.tell(Event::Acquire { client, expected });
            }
            What::Cancel => {
                self.clients[slot].waiting = false;
                self.tell(Event::Cancel { client });
            }
            What::Release => self.release(slot),
            What::ReleaseStale { epoch } => {
                let current = self.clients[slot].lease.as_ref().map(|lease| lease.epoch);
                if current != Some(Epoch(*epoch)) {
                    self.tell(Event::Release { client, epoch: Epoch(*epoch), busy: None });
                }
            }
            What::Leave => {
                self.clients[slot] = Client::default();
                self.tell(Event::Leave { client });
            }
            What::Room { gpu, bytes } => self.room(slot, Gpu(*gpu), *bytes),
            What::Grown { gpu, bytes } => self.grown(slot, Gpu(*gpu), *bytes),
            What::RoomCancel { nth } => {
                if let Some(&seq) = self.clients[slot].requests.keys().nth(*nth) {
                    self.clients[slot].requests.remove(&seq);
                    self.tell(Event::RoomCancel { client, seq });
                }
            }
            What::RoomReturn { gpu, bytes } => self.room_return(slot, Gpu(*gpu), *bytes),
            What::Memory(deed) => self.deed(slot, deed),
            What::Timer | What::Restart | What::Measured { .. } => {
                unreachable!("handled above")
            }
        }
    }

    /// What a client does that has lost its assigner: it goes on, dies, or joins the new one.
    fn step_away(&mut self, slot: usize, what: &What) {
        let id = self.name(self.clients[slot].id);
        match what {
            What::Release => self.clients[slot].lease = None,
            What::Memory(Deed::Unclaim { gpu, bytes }) => {
                if let Some(paged) = self.clients[slot].memory.gpus.get_mut(&Gpu(*gpu)) {
                    paged.claimed = paged.claimed.saturating_sub(*bytes);
                    paged.resident = paged.resident.min(paged.claimed);
                }
            }
            What::RoomReturn { gpu, bytes } => {
                if let Some(room) = self.clients[slot].room.get_mut(&Gpu(*gpu)) {
                    *room = room.saturating_sub(*bytes);
                }
            }
            What::Leave => {
                self.clients[slot] = Client::default();
                self.tell(Event::Leave { client: id });
            }
            What::Join { .. } | What::Bind | What::Acquire { .. } => self.come_back(slot),
            _ => {}
        }
    }

    fn come_back(&mut self, slot: usize) {
        let id = self.name(self.clients[slot].id);
        let client = &mut self.clients[slot];
        client.away = false;
        let is_late = self.now >= self.settled || std::mem::take(&mut client.overslept);
        let room = |gpu: &Gpu| {
            let fixed = client.room.get(gpu).copied().unwrap_or(0);
            let Paged { claimed, resident, .. } = client.memory.of(*gpu);
            (*gpu, Room { fixed, claimed, resident })
        };
        let held = Held {
            bound: client.bound.iter().map(room).collect(),
            lease: client.lease.as_ref().map(|lease| lease.epoch),
        };
        let who = client.who.clone();
        let spec = ClientSpec { held: Some(held), ..self.spec(&who) };
        self.clients[slot].may_be_overtaken = is_late;
        self.use_gpus(slot);
        self.tell(Event::Join { client: id, spec });
        assert!(self.clients[slot].present || is_late, "what it held had to be kept for it");
    }

    fn spec(&self, who: &Who) -> ClientSpec {
        let known = self.setup.tenants.is_empty() || who.tenant < self.setup.tenants.len();
        ClientSpec {
            gpus: who.gpus,
            eligible: who.eligible.clone().map_or(Eligible::All, Eligible::Only),
            priority: Priority::new(who.priority).expect("drawn within the bounds"),
            tenant: if known { tenant_name(self.names, who.tenant) } else { String::new() },
            queue: self.setup.queue_name(who.queue),
            memory_limit: who.limit,
            ..ClientSpec::default()
        }
    }

    fn join(&mut self, slot: usize, who: &Who) {
        self.next_id += 1;
        self.gave_way[slot] = false;
        self.clients[slot] =
            Client { id: self.next_id, present: true, who: who.clone(), ..Client::default() };
        let spec = self.spec(who);
        self.tell(Event::Join { client: self.name(self.next_id), spec });
    }

    fn release(&mut self, slot: usize) {
        if let Some(lease) = self.clients[slot].lease.take() {
            self.use_gpus(slot);
            for paged in self.clients[slot].memory.gpus.values_mut() {
                paged.failed = false; // it is asked anew
            }
            let client = self.name(self.clients[slot].id);
            self.tell(Event::Release { client, epoch: lease.epoch, busy: None });
        }
    }

    fn room(&mut self, slot: usize, gpu: Gpu, bytes: u64) {
        let (client, seq) = self.asks(slot, gpu, bytes);
        self.tell(Event::RoomRequest { client, seq, gpu, bytes });
    }

    fn grown(&mut self, slot: usize, gpu: Gpu, bytes: u64) {
        self.grew = true;
        let (client, seq) = self.asks(slot, gpu, bytes);
        self.tell(Event::Grown { client, seq, gpu, bytes });
    }

    fn asks(&mut self, slot: usize, gpu: Gpu, bytes: u64) -> (ClientId, u64) {
        let client = &mut self.clients[slot];
        let seq = client.next_seq;
        client.next_seq += 1;
        client.requests.insert(seq, (gpu, bytes));
        (self.name(self.clients[slot].id), seq)
    }

    fn room_return(&mut self, slot: usize, gpu: Gpu, bytes: u64) {
        let client = &mut self.clients[slot];
        if let Some(room) = client.room.get_mut(&gpu) {
            *room = room.saturating_sub(bytes);
        }
        let client = self.name(self.clients[slot].id);
        self.tell(Event::RoomReturn { client, gpu, bytes });
    }

    /// The assigner dies, and a new one starts with what the old one had written down. Clients that
    /// wait ask again later; those that neither are bound nor hold are lost with it.
    fn restart(&mut self) {
        let names = self.names;
        let mut config = self.setup.config(|tenant| tenant_name(names, tenant));
        self.write_in_time();
        config.first_epoch = Epoch(self.written.epoch_limit.max(1));
        let settled = std::mem::replace(&mut self.settled, self.now.after(Duration::from_secs(2)));
        config.settle.until = self.settled;
        for client in &mut self.clients {
            client.waiting = false;
            client.requests.clear();
            if let (true, Some(lease)) = (client.bound.is_empty(), &client.lease) {
                client.bound = lease.gpus.clone();
            }
            if client.bound.is_empty() {
                *client = Client::default();
            }
            client.overslept |= client.away && self.now >= settled;
            client.away = client.present;
            client.memory.deaf = false;
            client.memory.forget_asked();
            for paged in client.memory.gpus.values_mut() {
                (paged.pinned, paged.failed) = (false, false); // it would say so again
            }
            if let Some(lease) = &mut client.lease {
                (lease.wanted, lease.recalled) = (false, false); // the new life says it again
            }
        }
        config.settle.expected.clone_from(&self.written.clients);
        // Those that were late already are not expected a second time.
        for slot in 0..SLOTS {
            let id = self.name(self.clients[slot].id);
            if self.clients[slot].away && !config.settle.expected.iter().any(|e| e.client == id) {
                self.clients[slot] = Client::default();
            }
        }
        self.scheduler = Scheduler::new(config).expect("the configuration is valid");
        self.outside.clear(); // the new life does not know of it
        self.write_first();
        self.tell(Event::Timer);
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.write_in_time();
        self.scheduler.handle(event.clone(), self.now);
        let actions: Vec<Action> = std::iter::from_fn(|| self.scheduler.poll_action()).collect();
        for action in &actions {
            self.write_before(action);
        }
        self.write_after(&event);
        for action in actions {
            self.obey(action);
        }
        self.judge_recalls();
        self.judge_evictions();
        if let Err(error) = self.scheduler.sanity_check() {
            panic!("after {event:?} at {:?}: {error}", self.now);
        }
        self.compare();
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::Bound { client, gpus } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} bound {gpus:?}"));
                if self.clients[slot].bound.is_empty() {
                    self.use_gpus(slot);
                }
                let client = &mut self.clients[slot];
                assert!(client.bound.is_empty() || client.bound == gpus, "bound for good");
                check_gpus(client, &gpus);
                client.bound = gpus;
            }
            Action::Refused { client, reason } => {
                let slot = self.slot(client);
                // Whom a lease belongs to is a name, too.
                let reason = match reason {
                    Refusal::HeldByAnother { gpu, .. } => format!("{gpu} is another's"),
                    Refusal::BeyondTenant { wanted, most, .. } => format!("{wanted} beyond {most}"),
                    reason => reason.to_string(),
                };
                self.log.push(format!("{slot} refused {reason}"));
                self.clients[slot] = Client::default();
            }
            Action::Grant { client, epoch, gpus, .. } => self.granted(client, epoch, gpus),
            Action::Wanted { client, epoch } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} wanted {epoch}"));
                let lease = self.clients[slot].lease.as_mut().expect("only holders are wanted");
                assert_eq!(lease.epoch, epoch);
                assert!(!lease.wanted || self.says_again, "told once");
                lease.wanted = true;
            }
            Action::GangReport(report) => panic!("nobody is connected, but told {report:?}"),
            Action::Overtaken { client, epoch } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} overtaken {epoch}"));
                assert!(self.clients[slot].may_be_overtaken, "what it held had to be kept for it");
                let lease = self.clients[slot].lease.take().expect("it said that it held one");
                assert_eq!(lease.epoch, epoch);
            }
            Action::Recall { client, epoch } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} recalled {epoch}"));
                let lease = self.clients[slot].lease.as_mut().expect("only holders are recalled");
                assert_eq!(lease.epoch, epoch);
                if lease.recalled && self.says_again {
                    return;
                }
                assert!(lease.wanted && !lease.recalled, "wanted first, and recalled once");
                lease.recalled = true;
                self.recalls.push((slot, client));
            }
            Action::Room { client, seq, verdict } => self.verdict(client, seq, verdict),
            action => self.obey_memory(action),
        }
    }

    fn granted(&mut self, client: ClientId, epoch: Epoch, gpus: Vec<Gpu>) {
        let slot = self.slot(client);
        self.log.push(format!("{slot} granted {gpus:?} {epoch}"));
        assert!(epoch > self.latest_epoch, "epochs only grow");
        self.latest_epoch = epoch;
        if self.setup.policy.is_exclusive() {
            let keeps =
                |other: &&Client| !other.away || self.now < self.settled && !other.overslept;
            for other in self.clients.iter().filter(keeps) {
                let held = other.lease.iter().flat_map(|lease| &lease.gpus);
                assert!(held.clone().all(|gpu| !gpus.contains(gpu)), "no GPU is held twice");
            }
        }
        self.judge_outrun(slot, &gpus);
        let client = &mut self.clients[slot];
        assert!(client.waiting && client.lease.is_none(), "only who waits is served");
        check_gpus(client, &gpus);
        assert!(client.bound.is_empty() || client.bound == gpus, "a lease covers all bound GPUs");
        client.waiting = false;
        assert!(!client.memory.deaf, "only who can hear is granted a lease");
        for paged in client.memory.gpus.values_mut() {
            paged.failed = false;
        }
        let granted = self.now;
        client.lease = Some(Lease { epoch, gpus, granted, wanted: false, recalled: false });
    }

    fn verdict(&mut self, client: ClientId, seq: u64, verdict: RoomVerdict) {
        let slot = self.slot(client);
        if self.answer_claim(slot, seq, &verdict) {
            return;
        }
        let client = &mut self.clients[slot];
        let request = client.requests.get(&seq).copied();
        let (gpu, bytes) = request.expect("only open requests are answered");
        match &verdict {
            RoomVerdict::Granted => *client.room.entry(gpu).or_insert(0) += bytes,
            RoomVerdict::Waiting { .. } => {}
            RoomVerdict::Denied(RoomDenied::NotBound) => assert!(!client.bound.contains(&gpu)),
            RoomVerdict::Denied(RoomDenied::ExceedsGpu { total, .. }) => {
                assert!(*total > 100 - self.setup.headroom);
            }
            RoomVerdict::Denied(RoomDenied::ExceedsLimit { total, limit }) => {
                assert!(total > limit && Some(*limit) == client.who.limit);
            }
            RoomVerdict::Denied(RoomDenied::HostBudget { needed, .. }) => {
                assert!(*needed > self.setup.budget.expect("there is one"));
            }
            RoomVerdict::Denied(RoomDenied::OthersFixed { .. }) => panic!("that is for claims"),
            RoomVerdict::Denied(RoomDenied::Deadlock) => {
                let fixed = client.room.values().any(|bytes| *bytes > 0);
                let claimed = client.memory.gpus.values().any(|paged| paged.claimed > 0);
                assert!(fixed || claimed, "others are left alone");
            }
        }
        if !matches!(verdict, RoomVerdict::Waiting { .. }) {
            client.requests.remove(&seq);
        }
        let verdict = match verdict {
            RoomVerdict::Waiting { missing, mut holders, .. } => {
                let mut holders: Vec<u64> = holders.drain(..).map(|(_, bytes)| bytes).collect();
                holders.sort_unstable();
                format!("waits for {missing} of {holders:?}")
            }
            verdict => format!("{verdict:?}"),
        };
        self.log.push(format!("{slot} room {seq} {verdict}"));
    }

    /// Everybody moves what it is asked for, releases what it holds once it has had all of its memory there, and
    /// returns its room, until nobody waits.
    pub(crate) fn calm_down(&mut self, gives: Gives) {
        for slot in 0..SLOTS {
            if self.clients[slot].away {
                self.come_back(slot);
            }
            if self.clients[slot].memory.deaf {
                self.deed(slot, &Deed::Back);
            }
            for gpu in 0..4 {
                if self.clients[slot].present {
                    self.deed(slot, &Deed::Pin { gpu, movable: true });
                }
            }
        }
        for gpu in 0..self.setup.gpus {
            self.measured(Gpu(gpu), u64::MAX, 0);
        }
        self.now = self.now.max(self.settled);
        self.tell(Event::Timer);
        for _ in 0..10 * SLOTS {
            self.now = self.now.max(self.scheduler.poll_deadline().unwrap_or(self.now));
            self.tell(Event::Timer);
            for slot in 0..SLOTS {
                for gpu in self.clients[slot].bound.clone() {
                    self.evict(slot, gpu, u64::MAX, Rest::Comes);
                }
                let waits = |lease: &Lease| !lease.recalled;
                let told = |lease: &Lease| lease.wanted;
                if self.lacks(slot) && self.clients[slot].lease.as_ref().is_some_and(waits) {
                    continue; // for its memory
                }
                if gives == Gives::AfterPhase || self.clients[slot].lease.as_ref().is_some_and(told)
                {
                    self.release(slot);
                }
                // Who waits for room is blocked; everybody else finishes and frees what it has.
                if self.clients[slot].requests.is_empty() {
                    for gpu in self.clients[slot].bound.clone() {
                        self.room_return(slot, gpu, u64::MAX);
                        self.unclaim(slot, gpu, u64::MAX);
                    }
                }
            }
        }
        let waiting: BTreeSet<usize> = (0..SLOTS)
            .filter(|slot| self.clients[*slot].waiting || !self.clients[*slot].requests.is_empty())
            .collect();
        assert!(waiting.is_empty(), "{waiting:?} wait for ever");
    }
}

/// The order of the names must not matter.
fn tenant_name(names: Names, tenant: usize) -> String {
    match names {
        Names::Forward => format!("t{tenant}"),
        Names::Backward => format!("x{}", 9 - tenant),
    }
}
