//! What an assigner writes down, so that its next life can go on: how a client is expected back, and until when that holds.
//!
//! Owns the amounts; it is the same for the daemon and for the simulation. Does not own when it is written otherwise, the
//! file, and what a restart makes of it (`restart`).
//!
//! A client that does not come back says nothing of its memory. So what is written of it is the most that it can have until it
//! is written again, and it is written again before it is told of more. Room comes in small parts, a chunk or a slab at a time:
//! with an eighth to spare, the number of writings grows with the logarithm of what a client gets, not with that.

use crate::config::Expected;
use crate::event::{Held, Room};
use crate::ids::Epoch;
use crate::snapshot::{ClientSnapshot, Snapshot};

/// Epochs that the next life leaves out: so many may be granted before it is written again.
const EPOCHS_AHEAD: u64 = 1_000_000;

/// More than there is, by what a client may get before it is written again.
fn ahead(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8)
}

impl Room {
    /// The most that a client that has this can have until it is written again. Fixed memory it may get at any time; one that holds a
    /// lease or is being credited can come to have all of its claims on the GPU, and some more of them.
    fn at_most(self, is_credited: bool) -> Room {
        let fixed = ahead(self.fixed);
        if !is_credited {
            return Room { fixed, ..self };
        }
        let claimed = ahead(self.claimed);
        Room { fixed, claimed, resident: claimed.max(self.resident) }
    }

    /// True if what was written down is no less than what the client has now. If it is not, that is to be written before the
    /// client hears of its memory.
    #[must_use]
    pub fn covers(self, now: Room) -> bool {
        self.fixed >= now.fixed && self.resident >= now.resident
    }
}

impl ClientSnapshot {
    /// How the client is expected back. One that is bound may hold its GPUs in any case, for grants are not written down; epoch 0
    /// is below every real one. Of one that is not, what it holds now counts, and it has no memory that the assigner knows of.
    #[must_use]
    pub fn expected_back(&self) -> Expected {
        let bound: Vec<_> = match self.bound {
            true => {
                self.room.iter().map(|(gpu, room)| (*gpu, room.at_most(self.is_credited))).collect()
            }
            false => self.gpus.iter().map(|gpu| (*gpu, Room::default())).collect(),
        };
        let lease = self.epoch.or(self.bound.then_some(Epoch(0)));
        Expected { client: self.client, held: Held { bound, lease }, gang: self.gang.clone() }
    }
}

impl Snapshot {
    /// The epoch below which the next life grants nothing.
    #[must_use]
    pub fn epoch_limit(&self) -> u64 {
        self.next_epoch.0 + EPOCHS_AHEAD
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::config::{Config, GpuConfig, Policy};
    use crate::event::{Action, ClientSpec, Event, Rest, Room, RoomVerdict};
    use crate::ids::{ClientId, Epoch, Gpu, Time};
    use crate::scheduler::Scheduler;

    const MIB: u64 = 1 << 20;
    const CHUNK: u64 = 16 * MIB;

    /// A node, and what is on its disk.
    struct Node {
        scheduler: Scheduler,
        written: BTreeMap<(ClientId, Gpu), Room>,
        writings: u32,
        gpus: BTreeMap<ClientId, Gpu>,
        epochs: BTreeMap<ClientId, Epoch>,
        asked: BTreeMap<ClientId, u64>,
    }

    impl Node {
        fn new(gpus: usize) -> Node {
            let config =
                Config::new(vec![GpuConfig { memory: 1024 * MIB }; gpus], Policy::GpuAffinity);
            Node {
                scheduler: Scheduler::new(config).unwrap(),
                written: BTreeMap::new(),
                writings: 0,
                gpus: BTreeMap::new(),
                epochs: BTreeMap::new(),
                asked: BTreeMap::new(),
            }
        }

        /// As the daemon does it: what a client is told of memory is written before.
        fn event(&mut self, event: Event) {
            self.scheduler.handle(event, Time(0));
            while let Some(action) = self.scheduler.poll_action() {
                match action {
                    Action::Credit { client, .. }
                    | Action::Room { client, verdict: RoomVerdict::Granted, .. } => {
                        self.tell(client)
                    }
                    Action::Bound { client, gpus } => _ = self.gpus.insert(client, gpus[0]),
                    Action::Grant { client, epoch, .. } => _ = self.epochs.insert(client, epoch),
                    Action::Evict { client, bytes, .. } => {
                        *self.asked.entry(client).or_default() += bytes;
                    }
                    _ => {}
                }
            }
        }

        fn tell(&mut self, client: ClientId) {
            let gpu = self.gpus[&client];
            let written = self.written.get(&(client, gpu)).copied().unwrap_or_default();
            if !written.covers(self.scheduler.room(client, gpu)) {
                self.writings += 1;
                let clients = self.scheduler.snapshot().clients;
                let back = clients.iter().map(|client| client.expected_back());
                let back = back.map(|it| (it.client, it.held.bound));
                let flat = back.flat_map(|(client, bound)| {
                    bound.into_iter().map(move |(gpu, room)| ((client, gpu), room))
                });
                self.written = flat.collect();
            }
        }

        fn join(&mut self, number: u64) -> ClientId {
            let client = ClientId(number);
            self.event(Event::Join {
                client,
                spec: ClientSpec { gpus: 1, ..ClientSpec::default() },
            });
            self.event(Event::Bind { client });
            client
        }

        fn claim(&mut self, client: ClientId, bytes: u64) {
            let gpu = self.gpus[&client];
            self.event(Event::Claim { client, seq: 1, gpu, bytes });
        }

        fn lease(&mut self, client: ClientId) {
            self.event(Event::Acquire { client, expected: None });
            let epoch = self.epochs[&client];
            self.event(Event::Ready { client, epoch });
        }
    }

    /// On each GPU one has all of it, another holds it and needs nothing, and a third is next: it is credited chunk by chunk.
    #[test]
    fn credits_of_two_in_turn_are_not_written_one_by_one() {
        let mut node = Node::new(2);
        let clients: Vec<ClientId> = (1..=6).map(|number| node.join(number)).collect();
        let mut on: BTreeMap<Gpu, Vec<ClientId>> = BTreeMap::new();
        for client in clients {
            on.entry(node.gpus[&client]).or_default().push(client);
        }
        assert!(on.values().all(|clients| clients.len() == 3), "{on:?}");
        for clients in on.values() {
            let [idle, holder, next] = clients[..] else { unreachable!() };
            node.claim(idle, 1024 * MIB);
            node.lease(idle);
            let epoch = node.epochs[&idle];
            node.event(Event::Release { client: idle, epoch, busy: None });
            node.lease(holder);
            node.claim(next, 1024 * MIB);
            node.event(Event::Acquire { client: next, expected: None });
            assert_eq!(node.asked[&idle], 1024 * MIB);
        }
        let before = node.writings;
        for _ in 0..1024 * MIB / CHUNK {
            for (gpu, clients) in on.clone() {
                let (client, bytes, rest) = (clients[0], CHUNK, Rest::Comes);
                node.event(Event::Evicted { client, gpu, bytes, rest });
            }
        }
        for (gpu, clients) in &on {
            assert_eq!(node.scheduler.room(clients[2], *gpu).resident, 1024 * MIB);
        }
        assert!(node.writings - before <= 2, "written {} times", node.writings - before);
    }

    #[test]
    fn slabs_of_fixed_memory_are_not_written_one_by_one() {
        let mut node = Node::new(1);
        let client = node.join(1);
        let gpu = node.gpus[&client];
        for seq in 1..=512 {
            node.event(Event::RoomRequest { client, seq, gpu, bytes: 2 * MIB });
        }
        assert_eq!(node.scheduler.room(client, gpu).fixed, 1024 * MIB);
        // Eight until an eighth is a slab, then log(64) / log(9/8).
        assert!(node.writings <= 8 + 36, "written {} times", node.writings);
    }
}
