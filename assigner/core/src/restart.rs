//! What survives a restart of the assigner: nothing is granted on a GPU that a client of the
//! earlier life may still hold, and a client that comes back keeps what it holds.
//!
//! Does not own: the file in which the caller keeps that state.
//!
//! ```text
//!              Join with its lease ──────────────────────► held
//!  expected ──┬─ Join without it, Leave ──────────────────► free
//!             ├─ a later epoch turns up on its GPU ──┐
//!             └─ settle time ────────────────────────┴───► asleep ── Join with its lease ──► held, or overtaken
//! ```
//! Who is *asleep* (stopped, most likely) lives on: its memory is on the GPUs and stays counted, as memory that cannot be
//! moved. Only its lease keeps nobody out any more. If it comes back with that, and somebody else has the GPU by then, it
//! is told that its lease is over ([`Action::Overtaken`]). The caller must write down who is asleep before anybody is granted then:
//! a further assigner would take its lease for the latest.

use crate::config::{ConfigError, Expected, Policy};
use crate::event::{Action, Held, Refusal};
use crate::gang::{GangSpec, NodeEvent};
use crate::ids::{ClientId, Epoch, Gpu};
use crate::scheduler::{Client, Lease, Scheduler};

impl Scheduler {
    /// Keeps free what a client of the earlier life may still hold.
    pub(crate) fn expect_back(&mut self, expected: Expected) -> Result<(), ConfigError> {
        let Expected { client, held, gang } = expected;
        for &(gpu, room) in &held.bound {
            let Some(state) = self.gpus.get_mut(gpu.index()) else {
                return Err(ConfigError::ExpectedGpu { client, gpu });
            };
            state.bound.insert(client);
            if held.lease.is_some() && !state.claimed.contains(&client) {
                state.claimed.push(client);
            }
            self.memory.guess(client, gpu, room);
        }
        if let Some(gang) = &gang {
            self.gangs.node.expect(gang);
        }
        self.expected.insert(client, (held, gang));
        self.settling = true;
        Ok(())
    }

    /// A client of the earlier life will not come back.
    pub(crate) fn give_up(&mut self, client: ClientId) {
        if let Some((_, Some(gang))) = self.expected.get(&client) {
            self.gangs.news.push_back(NodeEvent::Gone(gang.clone()));
        }
        let gang = self.forget_expected(client);
        self.gangs.news.extend(gang.map(NodeEvent::Awaited));
    }

    /// Strikes out what is kept for a client of the earlier life; the gang that it was in.
    pub(crate) fn forget_expected(&mut self, client: ClientId) -> Option<GangSpec> {
        let (held, gang) = self.expected.remove(&client)?;
        let gpus: Vec<Gpu> = held.bound.iter().map(|(gpu, _)| *gpu).collect();
        for gpu in &gpus {
            self.gpus[gpu.index()].bound.remove(&client);
        }
        self.drop_claim(client, &gpus);
        self.memory.forget(client, gpus.iter().copied());
        gang
    }

    /// Whether clients of the earlier life are waited for.
    pub fn is_settling(&self) -> bool {
        self.settling
    }

    fn drop_claim(&mut self, client: ClientId, gpus: &[Gpu]) {
        for gpu in gpus {
            self.gpus[gpu.index()].claimed.remove(&client);
        }
        self.dirty.gpus.extend(gpus);
    }

    /// Frees what is kept for clients that have not come back in time, but for the memory that they have.
    pub(crate) fn end_settling(&mut self) {
        if !self.settling || self.now < self.config.settle.until {
            return;
        }
        self.settling = false;
        let asleep: Vec<ClientId> = self.expected.keys().copied().collect();
        for client in asleep {
            let (held, gang) = self.expected.get_mut(&client).expect("it was just listed");
            held.lease = None;
            let gpus: Vec<Gpu> = held.bound.iter().map(|(gpu, _)| *gpu).collect();
            if let Some(gang) = gang.take() {
                self.gangs.news.extend([NodeEvent::Gone(gang.clone()), NodeEvent::Awaited(gang)]);
            }
            self.drop_claim(client, &gpus);
        }
        self.memory.end_settling();
    }

    /// Says why a client that comes back cannot keep what it holds.
    pub(crate) fn adoptable(
        &self,
        width: u32,
        limit: Option<u64>,
        held: &Held,
    ) -> Result<(), Refusal> {
        let gpus: Vec<Gpu> = held.bound.iter().map(|(gpu, _)| *gpu).collect();
        let known = gpus.iter().all(|gpu| gpu.index() < self.gpus.len());
        let distinct = gpus.iter().enumerate().all(|(at, gpu)| !gpus[..at].contains(gpu));
        if !known || !distinct || gpus.len() != width as usize {
            let bound = u32::try_from(gpus.len()).unwrap_or(u32::MAX);
            return Err(Refusal::HeldInvalid { bound, wanted: width });
        }
        if let Some(epoch) = held.lease.filter(|epoch| *epoch > Epoch::LAST_CREDIBLE) {
            return Err(Refusal::HeldEpoch(epoch));
        }
        let twice = |(other, client): (&ClientId, &Client)| {
            let lease = client.lease.as_ref().filter(|lease| Some(lease.epoch) == held.lease);
            lease.map(|lease| (lease.gpus[0], *other))
        };
        if let Some((gpu, holder)) = self.clients.iter().find_map(twice) {
            return Err(Refusal::HeldByAnother { gpu, holder });
        }
        for &(gpu, room) in &held.bound {
            if let Some((room, free)) = self.memory.misfit(gpu, room) {
                return Err(Refusal::HeldRoom { gpu, room, free });
            }
            let most = limit.unwrap_or(u64::MAX);
            let all = room.fixed.saturating_add(room.claimed);
            if all > most {
                return Err(Refusal::HeldRoom { gpu, room: all, free: most });
            }
        }
        Ok(())
    }

    /// Whether somebody else has one of the GPUs since this lease.
    fn is_overtaken(&self, policy: Policy, held: &Held, lapsed: bool) -> bool {
        let alone = |id: &ClientId| self.policy_of(&self.clients[id]).is_exclusive();
        let later = |other: &ClientId| lapsed || self.claimed_epoch(*other) >= held.lease;
        held.bound.iter().map(|(gpu, _)| &self.gpus[gpu.index()]).any(|state| match policy {
            policy if policy.is_exclusive() => {
                !state.holders.is_empty() || state.claimed.iter().any(later)
            }
            _ => state.holders.iter().any(alone),
        })
    }

    fn claimed_epoch(&self, client: ClientId) -> Option<Epoch> {
        self.expected.get(&client).and_then(|(held, _)| held.lease)
    }

    /// Lets a client that comes back keep what it holds; it is [`adoptable`](Self::adoptable). `lapsed`: somebody else may have
    /// been granted since, for it slept when an earlier assigner waited for it. `unbound`: it has nothing there but its lease.
    pub(crate) fn adopt(&mut self, client: ClientId, held: Held, unbound: bool, lapsed: bool) {
        let gpus: Vec<Gpu> = held.bound.iter().map(|(gpu, _)| *gpu).collect();
        if !unbound {
            self.bind_to(client, gpus.clone());
            for &(gpu, room) in &held.bound {
                self.memory.adopt(client, gpu, room);
            }
        }
        let Some(epoch) = held.lease else { return };
        self.next_epoch = self.next_epoch.max(epoch.next()); // the caller may have lost its state
        let policy = self.policy_of(&self.clients[&client]);
        if self.is_overtaken(policy, &held, lapsed) {
            self.actions.push_back(Action::Overtaken { client, epoch });
            return;
        }
        if policy.is_exclusive() {
            // The later lease proves that the earlier one was over.
            for gpu in &gpus {
                let claimed = self.gpus[gpu.index()].claimed.to_vec();
                for other in claimed {
                    let (theirs, _) = self.expected.get_mut(&other).expect("claims are expected");
                    theirs.lease = None;
                    let theirs: Vec<Gpu> = theirs.bound.iter().map(|(gpu, _)| *gpu).collect();
                    self.drop_claim(other, &theirs);
                }
            }
        }
        self.dirty.gpus.extend(&gpus);
        let mut lease = Lease::new(epoch, &gpus, self.now);
        lease.is_ready = held.bound.iter().all(|(_, room)| room.resident >= room.claimed);
        self.install(client, lease);
    }
}
