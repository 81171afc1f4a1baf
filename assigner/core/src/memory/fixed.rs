//! Fixed memory: requests that wait, their order, and the end of deadlocks.
//!
//! Does not own: how room is made for them (`credit`), or claims, which never wait (`claims`).
//!
//! ```text
//!              fits, and nobody is starved by it
//!  request ───────────────────────────────────────────► granted ──► returned
//!     │ else                              ▲                ▲
//!     └──► waiting ── room comes back ────┘                │ nothing: the client lives on
//!             ├───── would exceed the GPU alone ────────► denied
//!             ├───── newest of a deadlock ──────────────► denied
//!             └───── cancelled, or the client is gone ──► forgotten
//! ```
//!
//! Fixed memory is *admissible* where, beside all fixed memory, the largest claim still fits: so
//! whoever's turn it is can have all of its memory on the GPU. What is admissible waits only while
//! paged memory is moved away for it.
//!
//! Requests wait in order. A later one that fits passes the first while the first has been passed
//! less than `max_bypass` times and has waited less than `max_bypass_time`. After that what comes
//! back is saved for the first one, unless only clients that wait themselves could give it back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Memory;
use super::ledger::Ledger;
use crate::event::{RoomDenied, RoomVerdict};
use crate::ids::{ClientId, Gpu, Time};

/// An answer that the ledger gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) client: ClientId,
    pub(crate) seq: u64,
    pub(crate) verdict: RoomVerdict,
}

/// How long a waiting request may be passed by later ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) max_bypass: u32,
    pub(crate) max_bypass_time: Duration,
}

/// Fixed memory that a client wants.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) client: ClientId,
    pub(crate) seq: u64,
    pub(crate) bytes: u64,
    arrived: u64,
    pub(crate) since: Time,
    bypassed: u32,
    /// The client knows that it waits.
    pub(crate) told: bool,
}

impl Memory {
    /// True while some request of `client` waits.
    pub(crate) fn is_waiting(&self, client: ClientId) -> bool {
        self.waiters.contains_key(&client)
    }

    /// Since when the oldest waiting request of `client` waits, looking at `gpus` alone.
    pub(crate) fn waiting_since(&self, client: ClientId, gpus: &[Gpu]) -> Option<Time> {
        let gpus = if self.is_waiting(client) { gpus } else { &[] };
        gpus.iter()
            .flat_map(|gpu| &self.ledger(*gpu).waiting)
            .filter(|request| request.client == client)
            .map(|request| request.since)
            .min()
    }

    /// A client asks for fixed memory; answered by [`Memory::settle_requests`], or at once.
    pub(crate) fn request(
        &mut self,
        client: ClientId,
        seq: u64,
        gpu: Gpu,
        bytes: u64,
        now: Time,
    ) -> Option<Answer> {
        let waiting = &self.ledger(gpu).waiting;
        if waiting.iter().any(|other| other.client == client && other.seq == seq) {
            return None; // a repeated message; its answer is on the way
        }
        if let Some(denied) = self.over_budget(gpu, bytes, 0) {
            return Some(Answer { client, seq, verdict: RoomVerdict::Denied(denied) });
        }
        let arrived = self.arrivals;
        self.arrivals += 1;
        let request = Request { client, seq, bytes, arrived, since: now, bypassed: 0, told: false };
        self.gpus[gpu.index()].waiting.push_back(request);
        *self.waiters.entry(client).or_insert(0) += 1;
        self.note(gpu);
        None
    }

    /// A driver has taken memory for a client already: it counts at once, out of what is kept free for that. False: it does not
    /// fit there.
    pub(crate) fn grown(&mut self, client: ClientId, gpu: Gpu, bytes: u64) -> bool {
        let fits =
            self.ledger(gpu).bears(client, bytes) && self.over_budget(gpu, bytes, 0).is_none();
        if fits {
            self.gpus[gpu.index()].change(client, |account| account.fixed += bytes);
            self.note(gpu);
        }
        fits
    }

    /// A client withdraws a request on one of `gpus`; unknown ones are ignored.
    pub(crate) fn cancel(&mut self, client: ClientId, seq: u64, gpus: &[Gpu]) {
        for gpu in gpus {
            let waiting = &self.ledger(*gpu).waiting;
            if let Some(at) = waiting.iter().position(|r| r.client == client && r.seq == seq) {
                self.take(*gpu, at);
            }
        }
    }

    /// Takes the request at position `at` of a GPU out of the order.
    fn take(&mut self, gpu: Gpu, at: usize) -> Request {
        let waiting = &mut self.gpus[gpu.index()].waiting;
        let request = waiting.remove(at).expect("the position was just looked up");
        let count = self.waiters.get_mut(&request.client).expect("waiting requests are counted");
        *count -= 1;
        if *count == 0 {
            self.waiters.remove(&request.client);
        }
        self.note(gpu);
        request
    }

    /// Answers every request on `gpu` that can be answered now.
    pub(crate) fn settle_requests(&mut self, gpu: Gpu, now: Time) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut at = 0;
        while at < self.ledger(gpu).waiting.len() {
            let ledger = self.ledger(gpu);
            let request = &ledger.waiting[at];
            let verdict = if let Some(denied) = ledger.exceeds(request.client, request.bytes) {
                RoomVerdict::Denied(denied)
            } else if request.bytes <= ledger.free()
                && ledger.admits(request.bytes)
                && (at == 0 || self.may_pass(ledger, now))
            {
                RoomVerdict::Granted
            } else {
                at += 1;
                continue;
            };
            let request = self.take(gpu, at);
            if verdict == RoomVerdict::Granted {
                let ledger = &mut self.gpus[gpu.index()];
                ledger.change(request.client, |account| account.fixed += request.bytes);
                if at > 0 {
                    ledger.waiting[0].bypassed += 1;
                }
            }
            answers.push(Answer { client: request.client, seq: request.seq, verdict });
            at = 0; // the client may have ceased to wait, which changes who may pass
        }
        answers
    }

    /// What paged memory has to make room for: the waiting requests that are admissible.
    pub(crate) fn due(&self, gpu: Gpu, now: Time) -> u64 {
        let ledger = self.ledger(gpu);
        let mut due = 0u64;
        for (at, request) in ledger.waiting.iter().enumerate() {
            let sum = due.saturating_add(request.bytes);
            if ledger.admits(sum) && (at == 0 || self.may_pass(ledger, now)) {
                due = sum;
            }
        }
        due
    }

    /// True if a later request may pass the first one.
    fn may_pass(&self, ledger: &Ledger, now: Time) -> bool {
        let Some(first) = ledger.waiting.front() else { return true };
        let patient = first.bypassed < self.patience.max_bypass
            && now < first.since.after(self.patience.max_bypass_time);
        patient || first.bytes > ledger.available(self.waiters.keys().copied())
    }

    /// Denies the newest request of every set of clients that wait for each other alone.
    pub(crate) fn break_deadlocks(&mut self, now: Time) -> Vec<Answer> {
        let mut answers = Vec::new();
        while !self.waiters.is_empty() {
            // Who waits has changed, and with it who may pass on other GPUs.
            for gpu in self.numbers() {
                answers.extend(self.settle_requests(gpu, now));
            }
            let stuck = self.stuck();
            let newest = self
                .numbers()
                .flat_map(|gpu| (0..self.ledger(gpu).waiting.len()).map(move |at| (gpu, at)))
                .filter(|&(gpu, at)| {
                    let client = self.ledger(gpu).waiting[at].client;
                    // Denying one that has nothing would free nothing.
                    stuck.contains(&client) && self.has_some(client)
                })
                .max_by_key(|&(gpu, at)| self.ledger(gpu).waiting[at].arrived);
            let Some((gpu, at)) = newest else { break };
            let Request { client, seq, .. } = self.take(gpu, at);
            let verdict = RoomVerdict::Denied(RoomDenied::Deadlock);
            answers.push(Answer { client, seq, verdict });
        }
        answers
    }

    fn has_some(&self, client: ClientId) -> bool {
        self.gpus.iter().map(|gpu| gpu.room(client)).any(|room| room.fixed > 0 || room.claimed > 0)
    }

    /// True if clients wait for each other, for `sanity_check`.
    pub(crate) fn has_deadlock(&self) -> bool {
        self.stuck().into_iter().any(|client| self.has_some(client))
    }

    /// The clients that would wait for ever, even if everybody else gave all room back. (Coffman's
    /// detection: let whoever can be served finish and return what it has, until nobody can.)
    fn stuck(&self) -> BTreeSet<ClientId> {
        let mut stuck: BTreeSet<ClientId> = self.waiters.keys().copied().collect();
        loop {
            let before = stuck.len();
            let mut short: BTreeSet<ClientId> = BTreeSet::new();
            for ledger in self.gpus.iter().filter(|ledger| !ledger.waiting.is_empty()) {
                let available = ledger.available(stuck.iter().copied());
                let wants = ledger.wants();
                short.extend(wants.iter().filter(|(_, want)| **want > available).map(|(c, _)| *c));
            }
            stuck.retain(|client| short.contains(client));
            if stuck.len() == before {
                return stuck;
            }
        }
    }
}

impl Ledger {
    /// True if so much more fixed memory leaves room for the largest claim.
    pub(crate) fn admits(&self, bytes: u64) -> bool {
        let all = [self.sums().fixed, bytes, self.largest_claim(), self.missing];
        let taken = all.into_iter().fold(0, u64::saturating_add);
        !self.settling && taken <= self.most()
    }

    /// True if a driver can have taken so much more without it: then whoever's turn it is still has all of its memory, and
    /// the client is within its limit.
    fn bears(&self, client: ClientId, bytes: u64) -> bool {
        let all = [self.sums().fixed, bytes, self.largest_claim(), self.missing];
        let taken = all.into_iter().fold(0, u64::saturating_add);
        let limit = self.account(client).map_or(0, |account| account.limit);
        let room = self.room(client);
        let own = (room.fixed + room.claimed).saturating_add(bytes);
        !self.settling && bytes <= self.left() && taken <= self.capacity && own <= limit
    }

    /// What there would be if all but `kept` gave their room back.
    fn available(&self, kept: impl Iterator<Item = ClientId> + Clone) -> u64 {
        let fixed: u64 = kept.clone().map(|client| self.room(client).fixed).sum();
        self.most().saturating_sub(fixed).saturating_sub(self.largest_claim_of(kept))
    }

    /// What each waiting client wants in all; more than it could ever have counts as that.
    fn wants(&self) -> BTreeMap<ClientId, u64> {
        let mut wants: BTreeMap<ClientId, u64> = BTreeMap::new();
        for request in &self.waiting {
            let want = wants.entry(request.client).or_insert(0);
            let room = self.room(request.client);
            let most = self.most().saturating_sub(room.fixed).saturating_sub(room.claimed);
            *want = want.saturating_add(request.bytes).min(most);
        }
        wants
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryConfig;

    const GPU: Gpu = Gpu(0);

    /// Two GPUs of 100, and clients 1 to 4 on both.
    fn memory(max_bypass: u32) -> Memory {
        let patience = Patience { max_bypass, max_bypass_time: Duration::from_secs(10) };
        let mut memory = Memory::new([100, 100].into_iter(), patience, &MemoryConfig::default());
        for client in 1..=4 {
            memory.open(ClientId(client), GPU, u64::MAX);
            memory.open(ClientId(client), Gpu(1), u64::MAX);
        }
        memory
    }

    fn request(memory: &mut Memory, client: u64, seq: u64, bytes: u64, now: u64) -> Vec<Answer> {
        let now = Time(0).after(Duration::from_secs(now));
        let denied = memory.request(ClientId(client), seq, GPU, bytes, now);
        denied.into_iter().chain(settle(memory, now)).collect()
    }

    fn give_back(memory: &mut Memory, client: u64, bytes: u64, now: u64) -> Vec<Answer> {
        memory.give_back(ClientId(client), GPU, bytes);
        settle(memory, Time(0).after(Duration::from_secs(now)))
    }

    fn settle(memory: &mut Memory, now: Time) -> Vec<Answer> {
        let mut answers = memory.settle_requests(GPU, now);
        answers.extend(memory.break_deadlocks(now));
        assert!(!memory.has_deadlock());
        assert!(memory.ledger(GPU).adds_up());
        answers
    }

    /// Asks, and says which requests were granted by it.
    fn ask(memory: &mut Memory, client: u64, seq: u64, bytes: u64, now: u64) -> Vec<(u64, u64)> {
        granted(request(memory, client, seq, bytes, now))
    }

    fn granted(answers: Vec<Answer>) -> Vec<(u64, u64)> {
        let granted = answers.into_iter().filter(|a| a.verdict == RoomVerdict::Granted);
        granted.map(|answer| (answer.client.0, answer.seq)).collect()
    }

    #[test]
    fn small_requests_pass_a_big_one_for_a_while() {
        let mut memory = memory(100);
        assert_eq!(ask(&mut memory, 1, 1, 50, 0), [(1, 1)]);
        assert_eq!(ask(&mut memory, 2, 1, 90, 0), []);
        assert_eq!(ask(&mut memory, 3, 1, 10, 9), [(3, 1)]);
        assert_eq!(ask(&mut memory, 3, 2, 10, 10), []);
        // Room is saved for the big one, and then the small one is next.
        assert_eq!(granted(give_back(&mut memory, 1, 50, 11)), [(2, 1)]);
    }

    #[test]
    fn a_big_request_is_passed_when_only_those_who_wait_could_serve_it() {
        let mut memory = memory(0);
        assert_eq!(ask(&mut memory, 1, 1, 60, 0), [(1, 1)]);
        assert_eq!(ask(&mut memory, 2, 1, 80, 0), []);
        // Client 1 would have to go on to free what 2 needs.
        assert_eq!(ask(&mut memory, 1, 2, 20, 0), [(1, 2)]);
    }

    #[test]
    fn two_requests_of_one_client_that_exceed_the_gpu_together() {
        let mut memory = memory(0);
        assert_eq!(ask(&mut memory, 1, 1, 50, 0), [(1, 1)]);
        assert_eq!(ask(&mut memory, 2, 1, 60, 0), []);
        assert_eq!(ask(&mut memory, 2, 2, 60, 0), []);
        let answers = give_back(&mut memory, 1, 50, 0);
        let denied = RoomVerdict::Denied(RoomDenied::ExceedsGpu { total: 120, capacity: 100 });
        assert_eq!(answers[0].verdict, RoomVerdict::Granted);
        assert_eq!(answers[1], Answer { client: ClientId(2), seq: 2, verdict: denied });
    }

    #[test]
    fn threads_of_one_client_can_close_a_circle() {
        let mut memory = memory(9);
        assert_eq!(ask(&mut memory, 1, 1, 50, 0), [(1, 1)]);
        assert_eq!(ask(&mut memory, 2, 1, 40, 0), [(2, 1)]);
        assert_eq!(ask(&mut memory, 1, 2, 20, 0), []);
        // 10 are free: one thread of 2 gets them, but 1 and the other thread wait for each other.
        let answers = request(&mut memory, 2, 2, 30, 0);
        let denied = RoomVerdict::Denied(RoomDenied::Deadlock);
        assert_eq!(answers.last().map(|answer| &answer.verdict), Some(&denied));
    }

    #[test]
    fn who_has_nothing_does_not_pay_for_the_deadlock_of_others() {
        let mut memory = memory(0);
        for (client, bytes) in [(1, 50), (2, 30), (4, 20)] {
            assert_eq!(ask(&mut memory, client, 1, bytes, 0), [(client, 1)]);
        }
        for (client, seq, bytes) in [(2, 2, 20), (1, 2, 20), (2, 3, 30), (3, 1, 10)] {
            assert_eq!(ask(&mut memory, client, seq, bytes, 0), []);
        }
        // What 4 gives back goes to the first thread of 2; now 1 and 2 wait for each other, and
        // the newest request of all is that of 3.
        let answers = give_back(&mut memory, 4, 20, 0);
        let denied = RoomVerdict::Denied(RoomDenied::Deadlock);
        let first = Answer { client: ClientId(2), seq: 2, verdict: RoomVerdict::Granted };
        assert_eq!(answers, [first, Answer { client: ClientId(2), seq: 3, verdict: denied }]);
    }

    #[test]
    fn a_repeated_request_counts_once() {
        let mut memory = memory(0);
        assert_eq!(ask(&mut memory, 1, 1, 60, 0), [(1, 1)]);
        assert_eq!(ask(&mut memory, 2, 1, 60, 0), []);
        assert_eq!(ask(&mut memory, 2, 1, 60, 0), []);
        assert_eq!(granted(give_back(&mut memory, 1, 60, 0)), [(2, 1)]);
        assert_eq!(memory.used(GPU), 60);
    }

    #[test]
    fn sums_do_not_overflow() {
        let mut memory = memory(0);
        assert_eq!(ask(&mut memory, 1, 1, 60, 0), [(1, 1)]);
        assert_eq!(ask(&mut memory, 1, 2, u64::MAX, 0), []);
        assert_eq!(memory.used(GPU), 60);
    }
}
