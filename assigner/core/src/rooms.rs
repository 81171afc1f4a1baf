//! The ledger of room: which client has how many bytes of which GPU, and who waits for more.
//!
//! Owns: that the promised bytes of a GPU never exceed it, the order of waiting requests, and the
//! end of deadlocks. Does not own: leases, or whether a client may use the GPU at all.
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
//! Requests wait in order. A later one that fits passes the first while the first has been passed
//! less than `max_bypass` times and has waited less than `max_bypass_time`. After that what comes
//! back is saved for the first one, unless only clients that wait themselves could give it back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

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

#[derive(Clone, Debug)]
struct Request {
    client: ClientId,
    seq: u64,
    bytes: u64,
    arrived: u64,
    since: Time,
    bypassed: u32,
}

#[derive(Clone, Debug)]
struct Ledger {
    capacity: u64,
    used: u64,
    room: BTreeMap<ClientId, u64>,
    waiting: VecDeque<Request>,
}

/// The rooms of all GPUs of a node.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    gpus: Vec<Ledger>,
    patience: Patience,
    /// Waiting requests of each client that has some, over all GPUs.
    waiters: BTreeMap<ClientId, u32>,
    arrivals: u64,
}

impl Rooms {
    pub(crate) fn new(capacities: impl Iterator<Item = u64>, patience: Patience) -> Rooms {
        let ledger = |capacity| Ledger {
            capacity,
            used: 0,
            room: BTreeMap::new(),
            waiting: VecDeque::new(),
        };
        Rooms {
            gpus: capacities.map(ledger).collect(),
            patience,
            waiters: BTreeMap::new(),
            arrivals: 0,
        }
    }

    /// Bytes of `gpu` that are promised.
    pub(crate) fn used(&self, gpu: Gpu) -> u64 {
        self.gpus[gpu.index()].used
    }

    /// Bytes of `gpu` that are not promised.
    pub(crate) fn free(&self, gpu: Gpu) -> u64 {
        self.gpus[gpu.index()].free()
    }

    /// Bytes of `gpu` that `client` has.
    pub(crate) fn of(&self, client: ClientId, gpu: Gpu) -> u64 {
        self.gpus[gpu.index()].of(client)
    }

    /// Requests that wait for room on `gpu`.
    pub(crate) fn waiting(&self, gpu: Gpu) -> usize {
        self.gpus[gpu.index()].waiting.len()
    }

    /// True while some request of `client` waits.
    pub(crate) fn is_waiting(&self, client: ClientId) -> bool {
        self.waiters.contains_key(&client)
    }

    /// Since when the oldest waiting request of `client` waits, looking at `gpus` alone.
    pub(crate) fn waiting_since(&self, client: ClientId, gpus: &[Gpu]) -> Option<Time> {
        let gpus = if self.is_waiting(client) { gpus } else { &[] };
        gpus.iter()
            .flat_map(|gpu| &self.gpus[gpu.index()].waiting)
            .filter(|request| request.client == client)
            .map(|request| request.since)
            .min()
    }

    /// Enters room that a client has from before, if it fits.
    pub(crate) fn adopt(&mut self, client: ClientId, gpu: Gpu, bytes: u64) -> bool {
        let ledger = &mut self.gpus[gpu.index()];
        let fits = bytes <= ledger.free();
        if fits {
            ledger.add(client, bytes);
        }
        fits
    }

    /// A client asks for room.
    pub(crate) fn request(
        &mut self,
        client: ClientId,
        seq: u64,
        gpu: Gpu,
        bytes: u64,
        now: Time,
    ) -> Vec<Answer> {
        let ledger = &mut self.gpus[gpu.index()];
        if ledger.waiting.iter().any(|other| other.client == client && other.seq == seq) {
            return Vec::new(); // a repeated message; its answer is on the way
        }
        let arrived = self.arrivals;
        self.arrivals += 1;
        ledger.waiting.push_back(Request { client, seq, bytes, arrived, since: now, bypassed: 0 });
        *self.waiters.entry(client).or_insert(0) += 1;
        let mut answers = self.settle(gpu, now);
        if !answers.iter().any(|answer| answer.client == client && answer.seq == seq) {
            let verdict = self.gpus[gpu.index()].shortage();
            answers.push(Answer { client, seq, verdict });
        }
        answers.extend(self.break_deadlocks(now));
        answers
    }

    /// A client withdraws a request on one of `gpus`; unknown ones are ignored.
    pub(crate) fn cancel(
        &mut self,
        client: ClientId,
        seq: u64,
        gpus: &[Gpu],
        now: Time,
    ) -> Vec<Answer> {
        for gpu in gpus {
            let waiting = &self.gpus[gpu.index()].waiting;
            if let Some(at) = waiting.iter().position(|r| r.client == client && r.seq == seq) {
                self.take(gpu.index(), at);
            }
        }
        self.resolve(gpus.iter().copied(), now)
    }

    /// A client gives room back; more than it has counts as all of it.
    pub(crate) fn give_back(
        &mut self,
        client: ClientId,
        gpu: Gpu,
        bytes: u64,
        now: Time,
    ) -> Vec<Answer> {
        self.gpus[gpu.index()].remove(client, bytes);
        self.resolve(std::iter::once(gpu), now)
    }

    /// Strikes a client out; `gpus` are those where it had or wanted room. What comes back is
    /// handed on by [`Rooms::resolve`].
    pub(crate) fn forget(&mut self, client: ClientId, gpus: impl Iterator<Item = Gpu>) {
        self.waiters.remove(&client);
        for gpu in gpus {
            let ledger = &mut self.gpus[gpu.index()];
            ledger.waiting.retain(|request| request.client != client);
            ledger.remove(client, u64::MAX);
        }
    }

    /// Answers what can be answered on `gpus`.
    pub(crate) fn resolve(&mut self, gpus: impl Iterator<Item = Gpu>, now: Time) -> Vec<Answer> {
        let mut answers: Vec<Answer> = gpus.flat_map(|gpu| self.settle(gpu, now)).collect();
        answers.extend(self.break_deadlocks(now));
        answers
    }

    /// Takes the request at position `at` of a GPU out of the order.
    fn take(&mut self, index: usize, at: usize) -> Request {
        let request = self.gpus[index].waiting.remove(at).expect("the position was just looked up");
        let count = self.waiters.get_mut(&request.client).expect("waiting requests are counted");
        *count -= 1;
        if *count == 0 {
            self.waiters.remove(&request.client);
        }
        request
    }

    /// Answers every request on `gpu` that can be answered now.
    fn settle(&mut self, gpu: Gpu, now: Time) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut at = 0;
        while at < self.gpus[gpu.index()].waiting.len() {
            let ledger = &self.gpus[gpu.index()];
            let request = &ledger.waiting[at];
            let total = ledger.of(request.client).saturating_add(request.bytes);
            let verdict = if total > ledger.capacity {
                let capacity = ledger.capacity;
                RoomVerdict::Denied(RoomDenied::ExceedsGpu { total, capacity })
            } else if request.bytes <= ledger.free() && (at == 0 || self.may_pass(ledger, now)) {
                RoomVerdict::Granted
            } else {
                at += 1;
                continue;
            };
            let request = self.take(gpu.index(), at);
            if verdict == RoomVerdict::Granted {
                let ledger = &mut self.gpus[gpu.index()];
                ledger.add(request.client, request.bytes);
                if at > 0 {
                    ledger.waiting[0].bypassed += 1;
                }
            }
            answers.push(Answer { client: request.client, seq: request.seq, verdict });
            at = 0; // the client may have ceased to wait, which changes who may pass
        }
        answers
    }

    /// True if a later request may pass the first one.
    fn may_pass(&self, ledger: &Ledger, now: Time) -> bool {
        let Some(first) = ledger.waiting.front() else { return true };
        let patient = first.bypassed < self.patience.max_bypass
            && now < first.since.after(self.patience.max_bypass_time);
        let can_come_back: u64 = ledger
            .room
            .iter()
            .filter(|(client, _)| !self.is_waiting(**client))
            .map(|(_, bytes)| *bytes)
            .sum();
        patient || first.bytes > ledger.free().saturating_add(can_come_back)
    }

    /// Denies the newest request of every set of clients that wait for each other alone.
    fn break_deadlocks(&mut self, now: Time) -> Vec<Answer> {
        let mut answers = Vec::new();
        while !self.waiters.is_empty() {
            // Who waits has changed, and with it who may pass on other GPUs.
            for index in 0..self.gpus.len() {
                answers.extend(self.settle(gpu_at(index), now));
            }
            let stuck = self.stuck();
            let newest = (0..self.gpus.len())
                .flat_map(|index| (0..self.gpus[index].waiting.len()).map(move |at| (index, at)))
                .filter(|&(index, at)| {
                    let client = self.gpus[index].waiting[at].client;
                    // Denying one that has nothing would free nothing.
                    stuck.contains(&client) && self.has_some(client)
                })
                .max_by_key(|&(index, at)| self.gpus[index].waiting[at].arrived);
            let Some((index, at)) = newest else { break };
            let Request { client, seq, .. } = self.take(index, at);
            let verdict = RoomVerdict::Denied(RoomDenied::Deadlock);
            answers.push(Answer { client, seq, verdict });
        }
        answers
    }

    fn has_some(&self, client: ClientId) -> bool {
        self.gpus.iter().any(|gpu| gpu.of(client) > 0)
    }

    /// The clients that would wait for ever, even if everybody else gave all room back. (Coffman's
    /// detection: let whoever can be served finish and return what it has, until nobody can.)
    fn stuck(&self) -> BTreeSet<ClientId> {
        let mut stuck: BTreeSet<ClientId> = self.waiters.keys().copied().collect();
        loop {
            let before = stuck.len();
            let mut short: BTreeSet<ClientId> = BTreeSet::new();
            for ledger in &self.gpus {
                let available = ledger.available(&stuck);
                let wants = ledger.wants();
                short.extend(wants.iter().filter(|(_, want)| **want > available).map(|(c, _)| *c));
            }
            stuck.retain(|client| short.contains(client));
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    /// What is wrong with the ledgers: the GPU and a description, for `sanity_check`.
    pub(crate) fn fault(&self) -> Option<(Gpu, RoomFault)> {
        let mut waiters: BTreeMap<ClientId, u32> = BTreeMap::new();
        for (index, ledger) in self.gpus.iter().enumerate() {
            let gpu = gpu_at(index);
            if ledger.room.values().sum::<u64>() != ledger.used
                || ledger.room.values().any(|b| *b == 0)
            {
                return Some((gpu, RoomFault::Sum));
            }
            if ledger.used > ledger.capacity {
                return Some((gpu, RoomFault::Overcommitted));
            }
            if ledger.waiting.front().is_some_and(|first| first.bytes <= ledger.free()) {
                return Some((gpu, RoomFault::Unserved));
            }
            for request in &ledger.waiting {
                *waiters.entry(request.client).or_insert(0) += 1;
            }
        }
        if waiters != self.waiters {
            return Some((Gpu(0), RoomFault::Waiters));
        }
        let deadlock = self.stuck().into_iter().any(|client| self.has_some(client));
        deadlock.then_some((Gpu(0), RoomFault::Deadlock))
    }
}

/// What can be wrong with a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomFault {
    /// The sum of the rooms is not what is promised.
    #[error("the rooms do not add up")]
    Sum,
    /// More is promised than there is.
    #[error("more is promised than there is")]
    Overcommitted,
    /// The first waiting request fits, but was not served.
    #[error("the first waiting request fits, but was not served")]
    Unserved,
    /// The count of waiting requests is wrong.
    #[error("the count of waiting requests is wrong")]
    Waiters,
    /// Clients wait for each other.
    #[error("clients wait for each other's room")]
    Deadlock,
}

fn gpu_at(index: usize) -> Gpu {
    Gpu(u32::try_from(index).expect("the configuration limits the number of GPUs"))
}

impl Ledger {
    fn free(&self) -> u64 {
        self.capacity - self.used
    }

    fn of(&self, client: ClientId) -> u64 {
        self.room.get(&client).copied().unwrap_or(0)
    }

    fn add(&mut self, client: ClientId, bytes: u64) {
        if bytes > 0 {
            *self.room.entry(client).or_insert(0) += bytes;
            self.used += bytes;
        }
    }

    fn remove(&mut self, client: ClientId, bytes: u64) {
        if let Some(room) = self.room.get_mut(&client) {
            let returned = bytes.min(*room);
            *room -= returned;
            self.used -= returned;
            if *room == 0 {
                self.room.remove(&client);
            }
        }
    }

    /// What there would be if all but `stuck` gave their room back.
    fn available(&self, stuck: &BTreeSet<ClientId>) -> u64 {
        let kept: u64 =
            self.room.iter().filter(|(client, _)| stuck.contains(client)).map(|(_, b)| *b).sum();
        self.capacity - kept
    }

    /// What each waiting client wants in all; more than it could ever have counts as that.
    fn wants(&self) -> BTreeMap<ClientId, u64> {
        let mut wants: BTreeMap<ClientId, u64> = BTreeMap::new();
        for request in &self.waiting {
            let want = wants.entry(request.client).or_insert(0);
            let most = self.capacity - self.of(request.client);
            *want = want.saturating_add(request.bytes).min(most);
        }
        wants
    }

    /// Tells the newest waiting request why it waits.
    fn shortage(&self) -> RoomVerdict {
        let wanted = self.waiting.iter().fold(0u64, |sum, r| sum.saturating_add(r.bytes));
        let mut holders: Vec<(ClientId, u64)> =
            self.room.iter().map(|(client, bytes)| (*client, *bytes)).collect();
        holders.sort_by_key(|(client, bytes)| (std::cmp::Reverse(*bytes), *client));
        RoomVerdict::Waiting { missing: wanted.saturating_sub(self.free()), holders }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Gpu = Gpu(0);

    fn rooms(max_bypass: u32) -> Rooms {
        let patience = Patience { max_bypass, max_bypass_time: Duration::from_secs(10) };
        Rooms::new([100, 100].into_iter(), patience)
    }

    /// Asks, and says which requests were granted by it.
    fn ask(rooms: &mut Rooms, client: u64, seq: u64, bytes: u64, now: u64) -> Vec<(u64, u64)> {
        let now = Time(0).after(Duration::from_secs(now));
        let answers = rooms.request(ClientId(client), seq, GPU, bytes, now);
        assert_eq!(rooms.fault(), None);
        granted(answers)
    }

    fn granted(answers: Vec<Answer>) -> Vec<(u64, u64)> {
        let granted = answers.into_iter().filter(|a| a.verdict == RoomVerdict::Granted);
        granted.map(|answer| (answer.client.0, answer.seq)).collect()
    }

    #[test]
    fn small_requests_pass_a_big_one_for_a_while() {
        let mut rooms = rooms(100);
        assert_eq!(ask(&mut rooms, 1, 1, 50, 0), [(1, 1)]);
        assert_eq!(ask(&mut rooms, 2, 1, 90, 0), []);
        assert_eq!(ask(&mut rooms, 3, 1, 10, 9), [(3, 1)]);
        assert_eq!(ask(&mut rooms, 3, 2, 10, 10), []);
        // Room is saved for the big one, and then the small one is next.
        let now = Time(0).after(Duration::from_secs(11));
        assert_eq!(granted(rooms.give_back(ClientId(1), GPU, 50, now)), [(2, 1)]);
    }

    #[test]
    fn a_big_request_is_passed_when_only_those_who_wait_could_serve_it() {
        let mut rooms = rooms(0);
        assert_eq!(ask(&mut rooms, 1, 1, 60, 0), [(1, 1)]);
        assert_eq!(ask(&mut rooms, 2, 1, 80, 0), []);
        // Client 1 would have to go on to free what 2 needs.
        assert_eq!(ask(&mut rooms, 1, 2, 20, 0), [(1, 2)]);
    }

    #[test]
    fn two_requests_of_one_client_that_exceed_the_gpu_together() {
        let mut rooms = rooms(0);
        assert_eq!(ask(&mut rooms, 1, 1, 50, 0), [(1, 1)]);
        assert_eq!(ask(&mut rooms, 2, 1, 60, 0), []);
        assert_eq!(ask(&mut rooms, 2, 2, 60, 0), []);
        let answers = rooms.give_back(ClientId(1), GPU, 50, Time(0));
        let denied = RoomVerdict::Denied(RoomDenied::ExceedsGpu { total: 120, capacity: 100 });
        assert_eq!(answers[0].verdict, RoomVerdict::Granted);
        assert_eq!(answers[1], Answer { client: ClientId(2), seq: 2, verdict: denied });
    }

    #[test]
    fn threads_of_one_client_can_close_a_circle() {
        let mut rooms = rooms(9);
        assert_eq!(ask(&mut rooms, 1, 1, 50, 0), [(1, 1)]);
        assert_eq!(ask(&mut rooms, 2, 1, 40, 0), [(2, 1)]);
        assert_eq!(ask(&mut rooms, 1, 2, 20, 0), []);
        // 10 are free: one thread of 2 gets them, but 1 and the other thread wait for each other.
        let answers = rooms.request(ClientId(2), 2, GPU, 30, Time(0));
        let denied = RoomVerdict::Denied(RoomDenied::Deadlock);
        assert_eq!(answers.last().map(|answer| &answer.verdict), Some(&denied));
        assert_eq!(rooms.fault(), None);
    }

    #[test]
    fn who_has_nothing_does_not_pay_for_the_deadlock_of_others() {
        let mut rooms = rooms(0);
        for (client, bytes) in [(1, 50), (2, 30), (4, 20)] {
            assert_eq!(ask(&mut rooms, client, 1, bytes, 0), [(client, 1)]);
        }
        for (client, seq, bytes) in [(2, 2, 20), (1, 2, 20), (2, 3, 30), (3, 1, 10)] {
            assert_eq!(ask(&mut rooms, client, seq, bytes, 0), []);
        }
        // What 4 gives back goes to the first thread of 2; now 1 and 2 wait for each other, and
        // the newest request of all is that of 3.
        let answers = rooms.give_back(ClientId(4), GPU, 20, Time(0));
        let denied = RoomVerdict::Denied(RoomDenied::Deadlock);
        let first = Answer { client: ClientId(2), seq: 2, verdict: RoomVerdict::Granted };
        assert_eq!(answers, [first, Answer { client: ClientId(2), seq: 3, verdict: denied }]);
    }

    #[test]
    fn a_repeated_request_counts_once() {
        let mut rooms = rooms(0);
        assert_eq!(ask(&mut rooms, 1, 1, 60, 0), [(1, 1)]);
        assert_eq!(ask(&mut rooms, 2, 1, 60, 0), []);
        assert_eq!(ask(&mut rooms, 2, 1, 60, 0), []);
        assert_eq!(granted(rooms.give_back(ClientId(1), GPU, 60, Time(0))), [(2, 1)]);
        assert_eq!(rooms.used(GPU), 60);
    }

    #[test]
    fn sums_do_not_overflow() {
        let mut rooms = rooms(0);
        assert_eq!(ask(&mut rooms, 1, 1, 60, 0), [(1, 1)]);
        assert_eq!(ask(&mut rooms, 1, 2, u64::MAX, 0), []);
        assert_eq!(rooms.used(GPU), 60);
    }
}
