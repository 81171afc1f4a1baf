//! What may be taken from whom: a model of its own judges every recall.

use super::*;

impl World {
    /// Whether what has been asked back may be: nobody takes from a tenant within its guarantee, and everything
    /// else has its reason.
    pub(super) fn judge_recalls(&mut self) {
        let recalls = std::mem::take(&mut self.recalls);
        if recalls.is_empty() {
            return;
        }
        let snapshot = self.scheduler.snapshot();
        let cause = |client: ClientId| {
            let found = snapshot.clients.iter().find(|other| other.client == client);
            found.and_then(|client| client.recalled_for).expect("a recall has a cause")
        };
        for (at, (slot, client)) in recalls.iter().enumerate() {
            let victim = &self.clients[*slot];
            // What its tenant held just before: neither what was asked back earlier, nor before it by the same event.
            let held: u32 = (0..SLOTS)
                .filter(|other| self.tenant(*other) == self.tenant(*slot))
                .filter(|other| !self.clients[*other].away)
                .filter_map(|other| Some((other, self.clients[other].lease.as_ref()?)))
                .filter(|(other, lease)| {
                    !lease.recalled || recalls[at..].iter().any(|(slot, _)| slot == other)
                })
                .map(|(_, lease)| lease.gpus.len() as u32)
                .sum();
            let borrows = held > self.setup.quota(victim.who.tenant).0;
            let mut waiting = (0..SLOTS)
                .filter(|other| self.clients[*other].waiting && !self.clients[*other].away);
            match cause(*client) {
                Cause::Priority => assert!(
                    waiting.any(|other| {
                        let higher = self.level(&self.clients[other]) > self.level(victim);
                        higher && (self.tenant(other) == self.tenant(*slot) || borrows)
                    }),
                    "a higher one waits, and the holder is not protected"
                ),
                Cause::Quota => {
                    assert!(borrows, "a tenant within its guarantee is left alone");
                    let guarantee = |slot: usize| self.setup.quota(self.clients[slot].who.tenant).0;
                    assert!(waiting.any(|other| guarantee(other) > 0), "a guaranteed one waits");
                }
                Cause::Quantum => {
                    let lease = victim.lease.as_ref().expect("it was just recalled");
                    let had = self.now.since(lease.granted);
                    let quantum = Duration::from_millis(self.setup.quantum_ms);
                    assert!(had >= quantum || self.gave_way[*slot], "it had its quantum");
                }
                Cause::Promise => {}
                Cause::Gang => panic!("there are no gangs in these histories"),
            }
        }
        for (slot, client) in recalls {
            self.gave_way[slot] = matches!(cause(client), Cause::Priority | Cause::Quota);
        }
    }

    /// Whose quota a client counts for; who names an unknown one counts for nobody's in particular.
    pub(super) fn tenant(&self, slot: usize) -> usize {
        let tenant = self.clients[slot].who.tenant;
        if self.setup.tenants.is_empty() { tenant } else { tenant.min(self.setup.tenants.len()) }
    }

    pub(super) fn level(&self, client: &Client) -> (i32, i32) {
        let queue = self.setup.queues.get(client.who.queue);
        (queue.map_or(0, |(priority, ..)| *priority), client.who.priority)
    }

    /// A client that could have all of its k GPUs as soon as they come back, since so many are not kept for who goes before it, sees
    /// k leases of a lower level start there at most. Not counted: who may be entitled, who is let go before another and gives
    /// back in time, and for whom memory may be in the way.
    pub(super) fn judge_outrun(&mut self, granted: usize, gpus: &[Gpu]) {
        let (who, id) = (&self.clients[granted].who, self.id(granted));
        let guarantee = |slot: usize| self.setup.quota(self.clients[slot].who.tenant).0;
        let passes = !self.scheduler.passed_by(id).is_empty();
        if self.setup.quota(who.tenant).0 > 0 || passes || !self.setup.policy.is_exclusive() {
            return;
        }
        let mut outrun = self.outrun;
        let level = |slot: usize| self.level(&self.clients[slot]);
        let states = self.scheduler.snapshot().gpus;
        for (slot, outrun) in outrun.iter_mut().enumerate() {
            let client = &self.clients[slot];
            let limited = self.setup.quota(client.who.tenant).1.is_some()
                || self.setup.queues.get(client.who.queue).is_some_and(|it| it.1.is_some());
            let has_memory = client.memory.deaf
                || !client.memory.gpus.is_empty()
                || !client.room.is_empty()
                || !client.requests.is_empty();
            let could = |gpu: &Gpu| match &client.who.eligible {
                _ if !client.bound.is_empty() => client.bound.contains(gpu),
                Some(eligible) => eligible.contains(gpu),
                None => true,
            };
            let is_left = |gpu: &Gpu| {
                let first = self.scheduler.kept_for(*gpu).map(|first| self.slot(first));
                let goes_before = |first: usize| {
                    first != slot && (level(first) >= level(slot) || guarantee(first) > 0)
                };
                could(gpu) && !states[gpu.0 as usize].stuck && !first.is_some_and(goes_before)
            };
            let left = (0..self.setup.gpus).map(Gpu).filter(is_left).count();
            let could_have_all = client.who.gpus == 1 || left >= client.who.gpus as usize;
            let outruns = client.waiting
                && !client.away
                && level(slot) > level(granted)
                && !limited
                && !has_memory
                && gpus.iter().any(could);
            if outruns {
                let most = client.who.gpus;
                *outrun = if could_have_all { *outrun + 1 } else { 0 };
                assert!(
                    *outrun <= most,
                    "{granted} starts before {slot}, which waits on a higher level"
                );
            }
        }
        self.outrun = outrun;
    }

    /// Everybody who holds has endless work, obeys, and wants more at once: nobody takes GPUs from each other for ever.
    ///
    /// While no time passes no quantum ends: each recall is for a higher or an entitled request, and each
    /// request makes way for each other one at most once. Only who was let go before another by its estimate is
    /// another request afterwards, so often as that other may be passed.
    pub(crate) fn quarrel(&mut self) {
        let pairs = SLOTS * (SLOTS - 1);
        let most = pairs * (1 + self.setup.max_bypass as usize);
        let acquire = |slot| Step { wait_ms: 0, slot, what: What::Acquire { expected_ms: None } };
        for slot in 0..SLOTS {
            if self.clients[slot].present && !self.clients[slot].away {
                self.step(&acquire(slot));
            }
        }
        for _ in 0..20 {
            let mut recalls = 0;
            while let Some(slot) = (0..SLOTS).find(|slot| self.is_recalled(*slot)) {
                recalls += 1;
                assert!(recalls <= most, "GPUs are taken back and forth");
                self.release(slot);
                self.step(&acquire(slot));
            }
            let Some(deadline) = self.scheduler.poll_deadline() else { return };
            self.now = self.now.max(deadline);
            self.tell(Event::Timer);
        }
    }

    fn is_recalled(&self, slot: usize) -> bool {
        let client = &self.clients[slot];
        !client.away && client.lease.as_ref().is_some_and(|lease| lease.recalled)
    }
}
