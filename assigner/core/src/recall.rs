//! Taking GPUs back: who may have whose lease recalled, and when.
//!
//! Owns: claims of waiting clients on held GPUs, the quantum, the timers. Does not own: for whom a GPU is kept (`plan`).
//!
//! What a waiting client may do about a lease that is in its way (the first line that fits decides):
//!
//! | the holder | then |
//! | --- | --- |
//! | is of the same tenant | the higher level takes it at once; the same one when the quantum is over |
//! | is of a tenant within its guarantee | only who is within a guarantee, too, when the quantum is over |
//! | has borrowed, and who waits is within its guarantee | at once |
//! | has borrowed or has no guarantee | the higher level at once; the same one when the quantum is over |
//!
//! In all other cases the holder is only told that somebody waits, and gives back when it is idle. Nothing else takes a
//! GPU from a client; it is asked to stop between two kernels, and never killed.
//!
//! No livelock: a request makes way *at once* for another one at most once, until it has had its quantum; the second time
//! it keeps that. So the pairs of requests of which one may still make way for the other are a potential: each recall at
//! once lowers it, whatever guarantees and limits say, and n requests see at most n(n-1) of them before time goes on.
//! That this is hardly ever needed follows from what is recalled: only what lets the other start (`plan`).

use std::hint::black_box;
use std::time::Duration;

use crate::config::Config;
use crate::event::{Action, Cause};
use crate::few::Notes;
use crate::gang::{Member, NodeEvent, Seat};
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::order::{Given, LaneKey};
use crate::scheduler::{Client, Lease, Scheduler, Ticket};

/// What a waiting client may do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Have it recalled now, for this reason.
    Now(Cause),
    /// Have it recalled when its quantum is over.
    AtQuantum,
    /// Wait until it is given back.
    Never,
}

/// Who wants a GPU, as far as others must give way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimant {
    pub(crate) client: ClientId,
    pub(crate) lane: LaneKey,
    pub(crate) entitled: bool,
}

impl Outlook {
    /// When both are back.
    pub(crate) fn with(self, other: Outlook) -> Outlook {
        Outlook {
            back: self.back.max(other.back),
            expected: self.expected.max(other.expected),
            recalled: self.recalled.max(other.recalled),
        }
    }

    /// True if this comes back in the same way as the `best` does, and no later than `slack` after it; later than it only if
    /// that is in time for a promise that was made already.
    pub(crate) fn is_about(&self, best: &Outlook, slack: Duration, promised: Option<Time>) -> bool {
        let alike = match (self.back, best.back) {
            (Back::Leaving(since), Back::Leaving(first)) => since <= first.after(slack),
            (one, other) => one == other,
        };
        let in_time = promised.is_none_or(|promised| self.recalled <= promised.max(best.recalled));
        alike
            && in_time
            && self.expected <= best.expected.after(slack)
            && self.recalled <= best.recalled.after(slack)
    }
}

/// When a GPU comes back, for somebody who waits for it. The order is that of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outlook {
    pub(crate) back: Back,
    /// If the estimates are right.
    pub(crate) expected: Time,
    /// Its last holder is recalled by then, however wrong they are; the end of time: nobody is.
    pub(crate) recalled: Time,
}

/// How a GPU comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Back {
    /// It is free.
    Free,
    /// All that hold it have been recalled, the last one then.
    Leaving(Time),
    /// All that hold it can be recalled now; the level of the highest.
    Now(crate::order::Level),
    /// Later.
    Later,
}

pub(crate) const NEVER: Time = Time(u64::MAX);

/// A client that could use any GPU asks all who hold one after this long, and again after twice the time: the holder of
/// the one that is kept for it would have given back by then if it were idle.
const PATIENCE: Duration = Duration::from_millis(10);

/// Bytes a second that every link moves: a quarter of four lanes of PCIe 3, which four GPUs share.
const SLOWEST: u64 = 1 << 29;

/// How long so many bytes may be on their way.
fn at_least(bytes: u64) -> Duration {
    Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(SLOWEST)) as u64)
}

impl Lease {
    /// How long it lasts when it is contended: the quantum, or as long as its switch is worth.
    fn span(&self, quantum: Duration) -> Duration {
        quantum.max(self.least.into()).saturating_sub(self.spent.into())
    }

    /// When it is recalled if somebody waits for it.
    ///
    /// The quantum begins when all of its memory is on the GPUs, or nothing more has come for too long. That is
    /// longer than what it lacked takes on the slowest link: else it could be recalled whenever it is half there, and two
    /// such clients would swap for ever.
    pub(crate) fn latest_recall(&self, config: &Config) -> Time {
        let started = match self.is_ready {
            true => self.started,
            false => self.progress.after(config.memory.late + at_least(self.lacked)),
        };
        let end = started.after(self.span(config.quantum));
        self.yields.min(end)
    }
}

impl Scheduler {
    /// What a waiting client may do about the lease of another.
    /// `taken`: what else would be taken with it. Of one tenant, what was let go before it is taken first, then the smaller
    /// leases: its guarantee is compared with what those leave, whatever the order of their GPUs is. So what a tenant
    /// borrows for a while does not cost it what it is guaranteed.
    pub(crate) fn claim(&self, who: &Claimant, holder: ClientId, taken: &[ClientId]) -> Claim {
        match self.claim_by_rank(who, holder, taken) {
            Claim::Now(Cause::Priority | Cause::Quota) if self.has_made_way(who.client, holder) => {
                Claim::AtQuantum
            }
            claim => claim,
        }
    }

    /// True if the request that holds has made way before for the one that waits.
    fn has_made_way(&self, who: ClientId, holder: ClientId) -> bool {
        let waiting = self.clients[&who].waiting.map(|ticket| &self.queue[&ticket]);
        waiting
            .zip(self.lease(holder).ticket)
            .is_some_and(|(waiter, held)| waiter.made_way.contains(&held))
    }

    fn claim_by_rank(&self, who: &Claimant, holder: ClientId, taken: &[ClientId]) -> Claim {
        let id = holder;
        let holder = &self.clients[&id];
        let seat = |client: ClientId| self.clients[&client].member.as_ref().map(|it| it.seat);
        if seat(id) == Some(Seat::Kept) {
            return Claim::Never; // its gang is about to start, or lets go
        }
        if let (Some(ticket), Some(lease)) = (self.clients[&who.client].waiting, &holder.lease)
            && lease.passed.contains(&ticket)
        {
            return match seat(who.client) {
                Some(Seat::Keeping) => Claim::Never, // it is lent until the gang's round is firm
                _ => Claim::Now(Cause::Promise),
            };
        }
        let by_level = match who.lane.level.cmp(&holder.level) {
            std::cmp::Ordering::Greater => Claim::Now(Cause::Priority),
            std::cmp::Ordering::Equal => Claim::AtQuantum,
            std::cmp::Ordering::Less => Claim::Never,
        };
        if who.lane.tenant == holder.tenant {
            return by_level;
        }
        let waits = self.clients[&who.client].waiting;
        let place = |client: &Client| (client.width, client.lease.as_ref().map(|it| it.epoch));
        let others = taken.iter().filter(|other| **other != id).map(|other| &self.clients[other]);
        let others = others.filter(|other| {
            let Some(lease) = other.lease.as_ref().filter(|lease| lease.recalled.is_none()) else {
                return false;
            };
            let passed = waits.is_some_and(|ticket| lease.passed.contains(&ticket));
            other.tenant == holder.tenant && (passed || place(other) < place(holder))
        });
        let taken = others.map(|other| other.width).sum();
        match (self.tenants.of(holder.tenant).is_protected(taken), who.entitled) {
            (true, true) => Claim::AtQuantum,
            (true, false) => Claim::Never,
            (false, true) => Claim::Now(Cause::Quota),
            (false, false) => by_level,
        }
    }

    /// When a GPU comes back to somebody who waits for it.
    pub(crate) fn outlook(&self, who: &Claimant, gpu: Gpu, taken: &[ClientId]) -> Outlook {
        let now = self.now;
        let state = &self.gpus[gpu.index()];
        if self.is_free(gpu, &self.clients[&who.client]) {
            return Outlook { back: Back::Free, expected: now, recalled: now };
        }
        let mut outlook = Outlook { back: Back::Leaving(Time(0)), expected: now, recalled: now };
        if !state.claimed.is_empty() {
            // Who is expected back may come at the last moment, and then has a quantum.
            let settled = self.config.settle.until.after(self.config.quantum);
            outlook = Outlook { back: Back::Later, expected: settled, recalled: settled };
        }
        for holder in &state.holders {
            let client = &self.clients[holder];
            let lease = client.lease.as_ref().expect("a holder has a lease");
            let (back, expected, recalled) = match (lease.recalled, self.claim(who, *holder, taken))
            {
                (Some(since), _) => (Back::Leaving(since), now, now),
                (None, Claim::Now(_)) if lease.is_ready => (Back::Now(client.level), now, now),
                (None, claim) => {
                    let end = match claim {
                        Claim::AtQuantum => self.turn_ends(who, *holder),
                        _ => lease.latest_recall(&self.config),
                    };
                    let (end, recalled) = match claim {
                        Claim::Never => (NEVER, NEVER),
                        // How long a page-in takes nobody can promise.
                        _ if !lease.is_ready => (NEVER, NEVER),
                        // Nor how long those of its gang take.
                        _ if self.is_seated(*holder) => (end, NEVER),
                        _ => (end, end),
                    };
                    // A holder beyond its estimate may be done at any moment.
                    let expected = lease.ends.min(end);
                    (Back::Later, expected.max(now), recalled.max(now))
                }
            };
            outlook = outlook.with(Outlook { back, expected, recalled });
        }
        outlook
    }

    pub(crate) fn lease(&self, holder: ClientId) -> &Lease {
        self.clients[&holder].lease.as_ref().expect("a holder has a lease")
    }

    fn lease_mut(&mut self, holder: ClientId) -> &mut Lease {
        let client = self.clients.get_mut(&holder).expect("a holder is known");
        client.lease.as_mut().expect("a holder has a lease")
    }

    /// Tells the holders of GPUs that somebody waits for them, and sees to their recall.
    pub(crate) fn tell_holders(&mut self, gpus: &GpuSet) {
        let leases = gpus.iter().flat_map(|gpu| {
            self.gpus[gpu.index()].holders.iter().map(|id| (self.lease(*id).epoch, *id))
        });
        let mut leases: Notes<(Epoch, ClientId)> = leases.collect();
        leases.sort_unstable();
        leases.dedup();
        for (_, id) in leases {
            let lease = self.lease(id);
            if lease.recalled.is_some() {
                continue;
            }
            let waiting = lease.gpus.iter().any(|gpu| {
                self.gpus[gpu.index()].reserved.is_some() || self.memory.presses(id, *gpu)
            }) || self.pressing(id).next().is_some();
            let is_kept = self.clients[&id].member.as_ref().is_some_and(|it| it.seat == Seat::Kept);
            let recall_at = if waiting && !is_kept { self.recall_time(id) } else { None };
            if waiting {
                self.tell_wanted(id);
            }
            self.set_timer(id, recall_at);
        }
    }

    /// Has a client that waits for any GPU ask all holders, if it goes on waiting.
    pub(crate) fn ask_later(&mut self, ticket: Ticket) {
        let since = self.clients[&self.queue[&ticket].client].since;
        let mut at = since.after(PATIENCE);
        while at <= self.now {
            at = since.after(at.since(since) * 2);
        }
        self.queue.get_mut(&ticket).expect("it waits").asks_at = Some(at);
        self.askers.insert((at, ticket));
    }

    /// It does not wait for any GPU any more.
    pub(crate) fn ask_no_more(&mut self, ticket: Ticket) {
        let waiter = self.queue.get_mut(&ticket).expect("the caller knows that it waits");
        if let Some(at) = waiter.asks_at.take() {
            self.askers.remove(&(at, ticket));
        }
    }

    /// Tells all who hold GPUs that a waiting client could use, so that the first to be idle gives back: whoever has the
    /// one that is kept for it may have the longest phase of all. Who is at work goes on, and nobody is recalled for it.
    pub(crate) fn ask_around(&mut self) {
        while let Some(&(at, ticket)) = self.askers.first()
            && at <= self.now
        {
            self.ask_no_more(ticket);
            let client = &self.clients[&self.queue[&ticket].client];
            let is_of_gang = client.member.is_some(); // its members start together, or not at all
            if !is_of_gang && self.excess(client.lane(), &Given::default()).is_none() {
                black_box(self.warm_holders(self.candidates(client)));
                let gpus = self.candidates(client).map(|gpu| &self.gpus[gpu.index()]);
                let holders = gpus.flat_map(|gpu| gpu.holders.iter().copied());
                let mut told: Notes<(Epoch, ClientId)> =
                    holders.map(|id| (self.lease(id).epoch, id)).collect();
                told.sort_unstable();
                for (_, id) in told {
                    self.tell_wanted(id);
                }
            }
            self.ask_later(ticket); // others may hold them by then
        }
    }

    pub(crate) fn tell_wanted(&mut self, id: ClientId) {
        let lease = self.lease_mut(id);
        if !lease.wanted {
            lease.wanted = true;
            if lease.is_told {
                let epoch = lease.epoch;
                self.actions.push_back(Action::Wanted { client: id, epoch });
            }
            self.tell_gang(id, NodeEvent::Wanted);
        }
    }

    /// A client is back that holds, as it says, `theirs`, and may not have heard what it was told since.
    pub(crate) fn agree_on_lease(&mut self, id: ClientId, theirs: Option<Epoch>) {
        let Some(client) = self.clients.get(&id) else { return };
        let told = client.lease.as_ref().filter(|lease| lease.is_told);
        let ours = told.map(|lease| (lease.epoch, lease.wanted, lease.recalled.is_some()));
        match (ours, theirs) {
            (Some((epoch, wanted, recalled)), Some(theirs)) if epoch == theirs => {
                let wanted = wanted.then_some(Action::Wanted { client: id, epoch });
                let recalled = recalled.then_some(Action::Recall { client: id, epoch });
                self.actions.extend(wanted.into_iter().chain(recalled));
            }
            (ours, theirs) => {
                if let Some((epoch, ..)) = ours {
                    self.release(id, epoch, None);
                }
                self.actions.extend(theirs.map(|epoch| Action::Overtaken { client: id, epoch }));
            }
        }
    }

    /// When a lease must be recalled for those who wait for its GPUs; `None`: only when it is idle.
    fn recall_time(&self, holder: ClientId) -> Option<Time> {
        let lease = self.lease(holder);
        if lease.is_due {
            return None; // that has been said
        }
        let is_pressed = lease.gpus.iter().any(|gpu| self.memory.presses(holder, *gpu));
        let pressed = is_pressed.then(|| lease.latest_recall(&self.config));
        let times = self.in_the_way_of(lease).filter_map(|ticket| {
            let waiter = &self.queue[&ticket];
            let lane = self.clients[&waiter.client].lane();
            let who = Claimant { client: waiter.client, lane, entitled: waiter.entitled };
            let promised = waiter.reservation.and_then(|reservation| reservation.promised);
            // Whoever could start although a promise was broken did not break it, and has a quantum: nobody starts only to stop.
            let promised = promised.filter(|promised| *promised > lease.granted);
            let end = lease.latest_recall(&self.config);
            let end = match self.claim(&who, holder, &[]) {
                Claim::Never => return self.rotates(holder).then_some(end),
                Claim::AtQuantum => self.turn_ends(&who, holder),
                Claim::Now(_) => end,
            };
            Some(promised.map_or(end, |promised| promised.min(end)))
        });
        let limited = self.pressing(holder).filter_map(|ticket| {
            let waiter = &self.queue[&ticket];
            let lane = self.clients[&waiter.client].lane();
            let who = Claimant { client: waiter.client, lane, entitled: false };
            let claim = self.claim(&who, holder, &[]);
            (claim != Claim::Never).then(|| lease.latest_recall(&self.config))
        });
        times.chain(pressed).chain(limited).min()
    }

    /// The requests for which GPUs of a lease are kept, and which cannot start as long as it is there.
    fn in_the_way_of(&self, lease: &Lease) -> impl Iterator<Item = Ticket> {
        lease.gpus.iter().filter_map(|gpu| {
            let ticket = self.gpus[gpu.index()].reserved?;
            let waiter = self.queue.get(&ticket)?; // it may have withdrawn at this very moment
            (!self.keeps_beside(&self.clients[&waiter.client], *gpu)).then_some(ticket)
        })
    }

    /// True if a member of a gang that only keeps could share a GPU with those who hold it: nobody there is in its way.
    pub(crate) fn keeps_beside(&self, client: &Client, gpu: Gpu) -> bool {
        client.member.as_deref().is_some_and(Member::keeps) && self.is_free(gpu, client)
    }

    /// The requests that wait for what the tenant or the queue of a holder has.
    fn pressing(&self, holder: ClientId) -> impl Iterator<Item = Ticket> {
        let client = &self.clients[&holder];
        let tenant = self.tenants.of(client.tenant).pressed;
        let queue = self.queues.of(client.queue).pressed;
        let limits = tenant.into_iter().chain(queue);
        // Who gangs wait for may have stopped to wait since.
        limits.chain(self.pressing_gangs(client).filter(|ticket| self.queue.contains_key(ticket)))
    }

    /// True if clients of the holder's own tenant wait for its GPUs: then the quantum counts between them, although
    /// the one that a GPU is kept for cannot have it recalled.
    fn rotates(&self, holder: ClientId) -> bool {
        let holder = &self.clients[&holder];
        let lease = holder.lease.as_ref().expect("a holder has a lease");
        let lines = lease.gpus.iter().map(|gpu| &self.gpus[gpu.index()].line);
        let mut heads = lines.chain([&self.floating]).flat_map(|line| line.heads());
        heads.any(|(lane, _)| lane.tenant == holder.tenant && lane.level >= holder.level)
    }

    fn set_timer(&mut self, holder: ClientId, at: Option<Time>) {
        let lease = self.lease_mut(holder);
        let (before, epoch) = (std::mem::replace(&mut lease.timer, at), lease.epoch);
        if before != at {
            if let Some(before) = before {
                self.timers.remove(&(before, epoch, holder));
            }
            if let Some(at) = at {
                self.timers.insert((at, epoch, holder));
            }
        }
    }

    /// Asks for a lease back for somebody who waits for it.
    pub(crate) fn recall_for(&mut self, who: ClientId, holder: ClientId, cause: Cause) {
        let (made_way, ticket) = (self.lease(holder).ticket, self.clients[&who].waiting);
        if let (Cause::Priority | Cause::Quota, Some(made_way), Some(ticket)) =
            (cause, made_way, ticket)
        {
            let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
            debug_assert!(!waiter.made_way.contains(&made_way), "each makes way for each once");
            waiter.made_way.push(made_way);
        }
        self.recall(holder, cause);
    }

    /// Asks for a lease back.
    pub(crate) fn recall(&mut self, id: ClientId, cause: Cause) {
        self.tell_wanted(id);
        let now = self.now;
        let lease = self.lease_mut(id);
        lease.recalled = Some(now);
        lease.cause = Some(cause);
        let (epoch, width, is_told) = (lease.epoch, lease.width(), lease.is_told);
        let tenant = self.clients[&id].tenant;
        self.tenants.of_mut(tenant).leaving += width;
        self.recalls.count(cause);
        if is_told {
            self.actions.push_back(Action::Recall { client: id, epoch });
        }
        self.set_timer(id, Some(now.after(self.config.drain)));
        self.tell_gang(id, NodeEvent::Recalled);
    }

    /// Recalls the contended leases whose time is over, and gives up on those recalled long ago.
    /// True if there were some.
    pub(crate) fn fire_timers(&mut self) -> bool {
        let mut fired = false;
        while let Some(&(at, _, id)) = self.timers.first() {
            if at > self.now {
                break;
            }
            fired = true;
            let lease = self.lease_mut(id);
            if lease.recalled.is_some() {
                lease.stuck = true;
                let gpus = lease.gpus.clone();
                self.dirty.gpus.extend(&*gpus);
                self.set_timer(id, None);
            } else if !self.lease(id).is_ready
                && self.lease(id).latest_recall(&self.config) > self.now
            {
                let later = self.lease(id).latest_recall(&self.config);
                self.set_timer(id, Some(later)); // its page-in goes on
            } else {
                let (cause, who) = self.cause(id, at);
                match who {
                    Some(who) => self.recall_for(who, id, cause),
                    None if self.is_seated(id) => {
                        self.set_timer(id, None);
                        self.expire_seat(id);
                        continue;
                    }
                    None => self.recall(id, cause),
                }
                self.mark_waited_for(id, None);
            }
        }
        fired
    }

    /// Who waits for several leases may have the others recalled, too, when the last one that it had to wait for is.
    /// `who`: it was recalled for this one, which knows.
    pub(crate) fn mark_waited_for(&mut self, holder: ClientId, who: Option<ClientId>) {
        let kept = self.lease(holder).gpus.iter().copied().filter(|gpu| {
            let first = self.gpus[gpu.index()].reserved.and_then(|ticket| self.queue.get(&ticket));
            let is_shared = self.gpus[gpu.index()].holders.len() > 1;
            first.is_some_and(|waiter| {
                let waits_for_more = is_shared || self.clients[&waiter.client].width > 1;
                waits_for_more && Some(waiter.client) != who
            })
        });
        let kept: Notes<Gpu> = kept.collect();
        self.dirty.gpus.extend(&kept);
    }

    /// Why a lease is recalled whose timer has come, and for whom if that is more than that its time is over.
    fn cause(&self, holder: ClientId, at: Time) -> (Cause, Option<ClientId>) {
        let lease = self.lease(holder);
        if at >= lease.started.after(lease.span(self.config.quantum)) {
            return (Cause::Quantum, None);
        }
        let mut causes = self.in_the_way_of(lease).filter_map(|ticket| {
            let waiter = &self.queue[&ticket];
            let lane = self.clients[&waiter.client].lane();
            let who = Claimant { client: waiter.client, lane, entitled: waiter.entitled };
            match self.claim(&who, holder, &[]) {
                Claim::Now(cause) => Some((cause, Some(who.client))),
                Claim::AtQuantum | Claim::Never => None,
            }
        });
        causes.next().unwrap_or((Cause::Promise, None))
    }

    /// All memory of a holder is on its GPUs: now its quantum begins. It lasts so long that the switch costs no more than
    /// the configured share of the time.
    pub(crate) fn begin_quantum(&mut self, id: ClientId, epoch: Epoch, switch: Duration) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(lease) = client.lease.as_mut().filter(|lease| lease.epoch == epoch) else {
            return;
        };
        let share = self.config.switch_share;
        if !lease.is_again {
            lease.started = self.now;
        }
        lease.least = switch.mul_f64((1.0 - share) / share).into();
        self.dirty.gpus.extend(lease.gpus.iter().copied());
        if let Some(member) = &client.member {
            let gang = member.gang.clone();
            self.tell_turn(gang);
        }
    }
}
