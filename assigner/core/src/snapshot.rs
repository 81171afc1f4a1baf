//! What status shows and what the caller writes down to survive a restart: a copy of the state.
//!
//! Does not own: names, indices, UUIDs and process ids; the caller knows those.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Expected, Policy};
use crate::event::{Cause, Eligible, Recalls, Room};
use crate::gang::{GangSpec, Member};
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::order::Given;
use crate::recall::NEVER;
use crate::scheduler::{Client, Scheduler, Ticket, Waiter};
use crate::table::Number;

/// The state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The moment.
    pub at: Time,
    /// The policy.
    pub policy: Policy,
    /// The epoch of the next grant.
    pub next_epoch: Epoch,
    /// The GPUs, in order of number.
    pub gpus: Vec<GpuSnapshot>,
    /// The clients, in order of number.
    pub clients: Vec<ClientSnapshot>,
    /// GPUs that are kept for waiting clients, in order of the queue.
    pub reservations: Vec<ReservationSnapshot>,
    /// Clients from before a restart that have not come back.
    pub expected: Vec<Expected>,
    /// Members of gangs that have gone: so many of each.
    pub departed: Vec<(GangSpec, u32)>,
    /// Bytes of the host that may be needed for what leaves the GPUs, and the budget for them.
    pub host: (u64, u64),
    /// The tenants that are configured, or have or had clients.
    pub tenants: Vec<TenantSnapshot>,
    /// The queues, the one without a name included.
    pub queues: Vec<QueueSnapshot>,
    /// Leases that have been asked back.
    pub recalls: Recalls,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSnapshot {
    /// Its number.
    pub gpu: Gpu,
    /// Bytes that may be promised.
    pub memory: u64,
    /// Bytes that are promised: fixed, resident or credited.
    pub room: u64,
    /// What is kept free for what drivers take unasked…
    pub headroom: u64,
    /// …and what of that they have taken, so that others make room.
    pub headroom_taken: u64,
    /// What clients have.
    pub total: Room,
    /// Time that holders have spent on getting their memory onto it.
    pub switching: Duration,
    /// Requests that wait for room.
    pub room_waiting: usize,
    /// Who holds a lease on it.
    pub holders: Vec<ClientId>,
    /// Clients bound to it, those expected back after a restart included.
    pub bound: Vec<ClientId>,
    /// Time in which somebody held it.
    pub held: Duration,
    /// Leases granted on it.
    pub grants: u64,
    /// True if a holder was recalled long ago, but does not stop.
    pub stuck: bool,
    /// True while it is not granted because a client from before a restart may still hold it.
    pub settling: bool,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// Neither holds nor waits.
    Idle,
    /// Waits for a lease.
    Waiting,
    /// Holds a lease.
    Holding,
    /// Holds a lease that it has been asked to give back.
    Recalled,
    /// Waits for room.
    WaitingForRoom,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSnapshot {
    /// Its number.
    pub client: ClientId,
    /// What it is doing.
    pub state: ClientState,
    /// Since when.
    pub since: Time,
    /// The GPUs it is bound to, in its device order; else those of its lease.
    pub gpus: Vec<Gpu>,
    /// True if it is bound.
    pub bound: bool,
    /// Its gang.
    pub gang: Option<GangSpec>,
    /// The lease that it holds.
    pub epoch: Option<Epoch>,
    /// True if it has been told that somebody waits for its lease.
    pub wanted: bool,
    /// Why its lease has been asked back.
    pub recalled_for: Option<Cause>,
    /// True if it holds a lease or its page-in may be under way: more of its claims may become resident.
    pub is_credited: bool,
    /// Its room on each GPU that it is bound to, in the order of `gpus`.
    pub room: Vec<(Gpu, Room)>,
    /// Its place in the queue, from 1.
    pub position: Option<usize>,
    /// Leases granted to it.
    pub grants: u64,
    /// Time that it has waited for leases.
    pub waited: Duration,
    /// Time that it has held leases.
    pub held: Duration,
    /// What it cost to begin its latest lease.
    pub switch: Duration,
}

/// GPUs that are kept for a waiting client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationSnapshot {
    /// The client.
    pub client: ClientId,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// When it starts if the estimates are right.
    pub expected: Time,
    /// When the last holder in its way is recalled at the latest; for the first in line.
    pub promised: Option<Time>,
    /// Later clients that have gone before it.
    pub bypassed: u32,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSnapshot {
    /// Its name.
    pub name: String,
    /// GPUs that it gets whenever it wants them.
    pub guarantee: u32,
    /// GPUs that it holds; what is beyond the guarantee is borrowed.
    pub held: u32,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// Its name.
    pub name: String,
    /// Clients in it, whatever they do.
    pub clients: u32,
    /// GPUs that they hold.
    pub held: u32,
}

impl Scheduler {
    /// When the lease that a client holds was to be granted at the latest, if that had been promised.
    #[must_use]
    pub fn promised_start(&self, client: ClientId) -> Option<Time> {
        let promised = self.clients.get(&client)?.lease.as_ref()?.promised;
        (promised < NEVER).then_some(promised)
    }

    /// The waiting clients that a holder was let go before (backfill), each with the number of its request: that stays the same
    /// when the client gives way and asks again. Without members of gangs for which GPUs are only being collected.
    #[must_use]
    pub fn passed_by(&self, holder: ClientId) -> Vec<(ClientId, u64)> {
        let lease = self.clients.get(&holder).and_then(|client| client.lease.as_ref());
        let passed = lease.into_iter().flat_map(|lease| lease.passed.iter());
        let waits = passed.filter_map(|ticket| self.queue.get(ticket));
        let counts = |waiter: &&Waiter| {
            !self.clients[&waiter.client].member.as_deref().is_some_and(Member::keeps)
        };
        waits.filter(counts).map(|it| (it.client, it.place.ticket.number())).collect()
    }

    /// Whether a client's next lease may cover a GPU: the client is bound to it, or to none and may have this one.
    #[must_use]
    pub fn may_use(&self, client: ClientId, gpu: Gpu) -> bool {
        self.clients.get(&client).is_some_and(|client| match &client.eligible {
            _ if !client.bound.is_empty() => client.bound.contains(&gpu),
            Eligible::All => true,
            Eligible::Only(gpus) => gpus.contains(&gpu),
        })
    }

    /// What a client has of a GPU.
    #[must_use]
    pub fn room(&self, client: ClientId, gpu: Gpu) -> Room {
        self.memory.of(client, gpu)
    }

    /// Who holds a GPU, with its lease; without, where it does not know: it is a member of a gang.
    pub fn holders(&self, gpu: Gpu) -> impl Iterator<Item = (ClientId, Option<Epoch>)> {
        let holders = self.gpus[gpu.index()].holders.iter();
        holders.map(|id| (*id, self.clients[id].known_lease().map(|lease| lease.epoch)))
    }

    /// For whom a GPU is kept until others have come free.
    #[must_use]
    pub fn kept_for(&self, gpu: Gpu) -> Option<ClientId> {
        let ticket = self.gpus[gpu.index()].reserved?;
        self.queue.get(&ticket).map(|waiter| waiter.client)
    }

    /// Bytes that page-ins did not find on a GPU, and that nobody has who is known.
    #[must_use]
    pub fn missing(&self, gpu: Gpu) -> u64 {
        self.memory.missing(gpu)
    }

    /// The state at the moment of the last event.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_at(self.now)
    }

    /// The state at `now`, if nothing has happened since the last event.
    #[must_use]
    pub fn snapshot_at(&self, now: Time) -> Snapshot {
        let now = now.max(self.now);
        let numbered = || (0..).map(Gpu).zip(&self.gpus);
        let gpus = numbered().map(|(gpu, state)| GpuSnapshot {
            gpu,
            memory: self.config.gpus[gpu.index()].memory,
            room: self.memory.used(gpu),
            headroom: self.memory.headroom(gpu).0,
            headroom_taken: self.memory.headroom(gpu).1,
            total: self.memory.total(gpu),
            switching: state.switching.into(),
            room_waiting: self.memory.waiting(gpu),
            holders: state.holders.to_vec(),
            bound: state.bound.iter().copied().collect(),
            held: Duration::from(state.held)
                + state.busy_since.map_or(Duration::ZERO, |since| now.since(since)),
            grants: state.grants,
            stuck: self.is_stuck(gpu),
            settling: !state.claimed.is_empty(),
        });
        let mut kept: BTreeMap<Ticket, Vec<Gpu>> = BTreeMap::new();
        for (gpu, state) in numbered() {
            if let Some(ticket) = state.reserved {
                kept.entry(ticket).or_default().push(gpu);
            }
        }
        let reservations = kept.into_iter().filter_map(|(ticket, gpus)| {
            let waiter = &self.queue[&ticket];
            let reservation = waiter.reservation?;
            Some(ReservationSnapshot {
                client: waiter.client,
                gpus,
                expected: reservation.expected,
                promised: reservation.promised,
                bypassed: waiter.bypassed,
            })
        });
        let mut clients: Vec<ClientSnapshot> =
            self.clients.iter().map(|(id, client)| self.client(*id, client, now)).collect();
        for (position, waiting) in (1..).zip(self.in_order()) {
            let at = clients.binary_search_by_key(&waiting, |client| client.client);
            clients[at.expect("a waiting client is known")].position = Some(position);
        }
        let tenants = self.tenants.iter().map(|(_, tenant)| TenantSnapshot {
            name: tenant.name.clone(),
            guarantee: tenant.guarantee,
            held: tenant.held,
        });
        let queues = self.queues.iter().map(|(_, queue)| QueueSnapshot {
            name: queue.name.clone(),
            clients: queue.clients,
            held: queue.held,
        });
        Snapshot {
            at: now,
            policy: self.config.policy,
            next_epoch: self.next_epoch,
            gpus: gpus.collect(),
            clients,
            reservations: reservations.collect(),
            host: (self.memory.host_used(), self.config.memory.host_budget),
            departed: self.gangs.node.departed(),
            expected: self
                .expected
                .iter()
                .map(|(client, (held, gang))| Expected {
                    client: *client,
                    held: held.clone(),
                    gang: gang.clone(),
                })
                .collect(),
            tenants: tenants.collect(),
            queues: queues.collect(),
            recalls: self.recalls,
        }
    }

    /// Who waits, in the order of this moment; those whose gang is not ready last.
    fn in_order(&self) -> Vec<ClientId> {
        let given = Given::default();
        let mut walk = self.walk((0..).map(Gpu).take(self.gpus.len()));
        let ordered = std::iter::from_fn(|| self.next_of(&mut walk, &given));
        let mut ordered: Vec<ClientId> =
            ordered.map(|next| self.queue[&next.ticket].client).collect();
        let held_back = |waiter: &&Waiter| !self.clients[&waiter.client].let_go;
        ordered.extend(self.queue.values().filter(held_back).map(|waiter| waiter.client));
        ordered
    }

    fn client(&self, id: ClientId, client: &Client, now: Time) -> ClientSnapshot {
        let lease = client.known_lease();
        let asks = client.asks_for(client.waiting).then_some(());
        let room_since = self.memory.waiting_since(id, &client.bound);
        let recalled = lease.and_then(|lease| lease.recalled);
        let (state, since) = match (recalled, room_since, lease, asks) {
            (Some(since), ..) => (ClientState::Recalled, since),
            (None, Some(since), ..) => (ClientState::WaitingForRoom, since),
            (None, None, Some(_), _) => (ClientState::Holding, client.since),
            (None, None, None, Some(_)) => (ClientState::Waiting, client.since),
            (None, None, None, None) => (ClientState::Idle, client.since),
        };
        let open = now.since(client.since);
        let open_if = |in_state: bool| if in_state { open } else { Duration::ZERO };
        let gpus = match lease {
            Some(lease) if client.bound.is_empty() => lease.gpus.to_vec(),
            _ => client.bound.to_vec(),
        };
        ClientSnapshot {
            client: id,
            state,
            since,
            gpus,
            bound: !client.bound.is_empty(),
            gang: client.member.as_ref().and_then(|member| self.gangs.spec(&member.gang)),
            epoch: lease.map(|lease| lease.epoch),
            wanted: lease.is_some_and(|lease| lease.wanted),
            recalled_for: lease.and_then(|lease| lease.cause),
            is_credited: lease.is_some() || self.memory.is_paging(id, &client.bound),
            room: client.bound.iter().map(|gpu| (*gpu, self.memory.of(id, *gpu))).collect(),
            position: None,
            grants: client.grants,
            waited: Duration::from(client.waited) + open_if(asks.is_some()),
            held: Duration::from(client.held) + open_if(lease.is_some()),
            switch: client.switch.into(),
        }
    }
}
