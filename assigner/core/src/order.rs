//! The order in which waiting clients are looked at.
//!
//! Owns: the order, and the lines that make it cheap: a plan looks at the first few of a line, never at all. Does not
//! own: what becomes of a client when it is its turn (`plan`).
//!
//! Compared in this order, the first difference decides:
//!
//! 1. within its tenant's guarantee, before what is borrowed; a guarantee is for the tenant's own first request, and if
//!    that does not fit, for none behind it (else small requests would starve the tenant's own big one);
//! 2. the priority of its queue, then its own;
//! 3. a promised start, before what has none;
//! 4. with fair share: other tenants, before who has used more than the holder, of the same tenant, is going to have;
//! 5. the GPU time that its tenant has used, by weight, then what it has used itself (with fair share);
//! 6. arrival.
//!
//! What is the same for many clients (1, 2 and 5's tenant) is a property of a lane, and read anew in every plan; the
//! rest does not change while a client waits, so that a lane is a sorted set.

use std::cmp::Reverse;

use crate::few::Notes;
use crate::ids::{Gpu, Priority};
use crate::queue::QueueId;
use crate::scheduler::{GpuState, Scheduler, Ticket};
use crate::sorted::Sorted;
use crate::table::Number;
use crate::tenant::{TenantId, Used};

/// What a request is worth: the priority of its queue, then its own. The higher takes GPUs from the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Level {
    pub(crate) queue: Priority,
    pub(crate) own: Priority,
}

/// How many priorities there are.
const PRIORITIES: i32 = Priority::HIGHEST.number() - Priority::LOWEST.number() + 1;

impl Level {
    /// One number in the same order, for gangs: their members can be in different queues, and on different nodes.
    pub(crate) fn number(self) -> i32 {
        self.queue.number() * PRIORITIES + self.own.number()
    }

    /// The level of such a number; the usual one for a number that is none.
    pub(crate) fn of_number(number: i32) -> Level {
        let queue = number.saturating_sub(Priority::LOWEST.number()).div_euclid(PRIORITIES);
        let own = number.wrapping_sub(queue.wrapping_mul(PRIORITIES));
        let priority = |number| Priority::new(number).unwrap_or_default();
        Level { queue: priority(queue), own: priority(own) }
    }
}

/// Clients between which only their own places decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneKey {
    pub(crate) level: Level,
    pub(crate) tenant: TenantId,
    pub(crate) queue: QueueId,
    /// GPUs that each of them wants: whether they are within a guarantee depends on it.
    pub(crate) width: u32,
}

/// The place of a client in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) unpromised: bool,
    pub(crate) used: Used,
    pub(crate) ticket: Ticket,
}

/// Clients that wait for the same GPU, or for any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    lanes: Vec<(LaneKey, Sorted<Place>)>,
}

impl Line {
    pub(crate) fn insert(&mut self, key: LaneKey, place: Place) {
        match self.lanes.iter_mut().find(|(known, _)| *known == key) {
            Some((_, places)) => _ = places.insert(place),
            None => {
                // Lanes that have run empty stay until now, as a plan may stand in one.
                self.lanes.retain(|(_, places)| !places.is_empty());
                let mut places = Sorted::default();
                places.insert(place);
                self.lanes.push((key, places));
            }
        }
    }

    pub(crate) fn remove(&mut self, key: LaneKey, place: &Place) {
        if let Some((_, places)) = self.lanes.iter_mut().find(|(known, _)| *known == key) {
            places.remove(place);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|(_, places)| places.is_empty())
    }

    pub(crate) fn contains(&self, key: LaneKey, place: &Place) -> bool {
        self.lanes.iter().any(|(known, places)| *known == key && places.contains(place))
    }

    pub(crate) fn len(&self) -> usize {
        self.lanes.iter().map(|(_, places)| places.len()).sum()
    }

    /// The lanes in which somebody waits, with the first of each.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (LaneKey, Place)> {
        self.lanes.iter().filter_map(|(key, places)| Some((*key, *places.first()?)))
    }

    /// Reads where the places of its lanes are (`warm`).
    pub(crate) fn warm_lanes(&self) -> u64 {
        self.lanes.iter().fold(0, |seen, (_, places)| seen ^ places.len() as u64)
    }

    /// Reads the first place of each lane (`warm`).
    pub(crate) fn warm_places(&self) -> u64 {
        let firsts = self.lanes.iter().filter_map(|(_, places)| places.first());
        firsts.fold(0, |seen, place| seen ^ place.ticket.number())
    }

    fn after(&self, key: LaneKey, place: Place) -> Option<Place> {
        let (_, places) = self.lanes.iter().find(|(known, _)| *known == key)?;
        places.after(&place).copied()
    }
}

/// Several lines, walked in the one order of all.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    heads: Notes<Head>,
    /// The tenant of the client that was taken last: what it has been given meanwhile changes its others' ranks.
    stale: Option<TenantId>,
    /// Heads have been taken out, so that others may be the first of their tenants.
    closed: bool,
}

/// GPUs that must come back to a tenant and to a queue before a client is within their limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) tenant: u32,
    pub(crate) queue: u32,
}

impl Excess {
    pub(crate) fn is_none(self) -> bool {
        self == Excess::default()
    }

    /// What is left of it after a lease has come back.
    pub(crate) fn without(self, tenant: u32, queue: u32) -> Excess {
        Excess {
            tenant: self.tenant.saturating_sub(tenant),
            queue: self.queue.saturating_sub(queue),
        }
    }

    /// How many of the limits are less in the way then.
    pub(crate) fn helped_by(self, left: Excess) -> u32 {
        u32::from(left.tenant < self.tenant) + u32::from(left.queue < self.queue)
    }
}

/// Whose turn it is in a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    pub(crate) ticket: Ticket,
    pub(crate) lane: LaneKey,
    /// Whether it is within its tenant's guarantee.
    pub(crate) entitled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    /// The line of this GPU; `None`: of those that wait for any.
    line: Option<Gpu>,
    lane: LaneKey,
    place: Place,
    rank: Rank,
}

/// What a plan has given out so far without it being held yet.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// GPUs kept for waiting clients, by tenant.
    tenants: Notes<(TenantId, u32)>,
    /// The same by queue.
    queues: Notes<(QueueId, u32)>,
    /// Tenants whose first request fits nowhere: their guarantees are for none behind it.
    unfit: Notes<TenantId>,
}

impl Given {
    pub(crate) fn add(&mut self, lane: LaneKey, gpus: u32) {
        self.add_to_tenant(lane.tenant, gpus);
        self.add_to_queue(lane.queue, gpus);
    }

    pub(crate) fn add_to_tenant(&mut self, id: TenantId, gpus: u32) {
        match self.tenants.iter_mut().find(|(tenant, _)| *tenant == id) {
            Some((_, kept)) => *kept += gpus,
            None => self.tenants.push((id, gpus)),
        }
    }

    pub(crate) fn add_to_queue(&mut self, id: QueueId, gpus: u32) {
        match self.queues.iter_mut().find(|(queue, _)| *queue == id) {
            Some((_, kept)) => *kept += gpus,
            None => self.queues.push((id, gpus)),
        }
    }

    /// Nothing can be kept for a tenant's first request.
    pub(crate) fn cannot_fit(&mut self, tenant: TenantId) {
        if !self.unfit.contains(&tenant) {
            self.unfit.push(tenant);
        }
    }

    pub(crate) fn to_tenant(&self, tenant: TenantId) -> u32 {
        self.tenants.iter().find(|(known, _)| *known == tenant).map_or(0, |(_, kept)| *kept)
    }

    pub(crate) fn to_queue(&self, queue: QueueId) -> u32 {
        self.queues.iter().find(|(known, _)| *known == queue).map_or(0, |(_, kept)| *kept)
    }
}

impl Walk {
    /// Nobody of this lane is looked at any more, of those that wait for any GPU.
    pub(crate) fn close_lane(&mut self, lane: LaneKey) {
        self.heads.retain(|head| head.line.is_some() || head.lane != lane);
        self.closed = true;
    }

    /// Nobody that waits for this GPU alone is looked at any more.
    pub(crate) fn close_line(&mut self, gpu: Gpu) {
        self.heads.retain(|head| head.line != Some(gpu) || head.lane.width > 1);
        self.closed = true;
    }
}

/// The order, as one value: the least is the first.
type Rank = (bool, Reverse<Level>, bool, bool, Used, Used, Ticket);

impl Scheduler {
    /// Begins a walk over those who wait for one of `gpus`, or for any.
    pub(crate) fn walk(&self, gpus: impl Iterator<Item = Gpu>) -> Walk {
        let mut heads = Notes::new();
        let mut add = |line: Option<Gpu>, lanes: &Line| {
            heads.extend(lanes.heads().map(|(lane, place)| {
                let (level, tenant) = (Reverse(lane.level), Used::default());
                let rank = (true, level, true, false, tenant, place.used, place.ticket);
                Head { line, lane, place, rank }
            }));
        };
        add(None, &self.floating);
        for gpu in gpus {
            add(Some(gpu), &self.gpus[gpu.index()].line);
        }
        let mut walk = Walk { heads, stale: None, closed: false };
        self.rank(&mut walk, &Given::default(), None);
        walk
    }

    /// The next client of a walk.
    pub(crate) fn next_of(&self, walk: &mut Walk, given: &Given) -> Option<Next> {
        let stale = walk.stale.take();
        if std::mem::take(&mut walk.closed) && self.tenants.guarantees() {
            self.rank(walk, given, None);
        } else if stale.is_some() {
            self.rank(walk, given, stale);
        }
        let first = *walk.heads.iter().min_by_key(|head| head.rank)?;
        let (borrows, ..) = first.rank;
        let tenant = first.lane.tenant;
        if self.shares.is_some() || self.tenants.of(tenant).guarantee > 0 {
            walk.stale = Some(tenant);
        }
        let ticket = first.place.ticket;
        // Who waits for several GPUs stands in several lines.
        let wide = first.lane.width > 1;
        let mut at = 0;
        while at < walk.heads.len() {
            let head = &mut walk.heads[at];
            if head.place.ticket != ticket {
                at += 1;
                continue;
            }
            let line = head.line.map_or(&self.floating, |gpu| &self.gpus[gpu.index()].line);
            match line.after(head.lane, head.place) {
                Some(next) => {
                    head.place = next;
                    let (borrows, level, _, has_more, used, ..) = head.rank;
                    let own = (next.used, next.ticket);
                    head.rank = (borrows, level, next.unpromised, has_more, used, own.0, own.1);
                    at += 1;
                }
                None => _ = walk.heads.swap_remove(at),
            }
            if !wide {
                break;
            }
        }
        Some(Next { ticket, lane: first.lane, entitled: !borrows })
    }

    /// Ranks the heads of a tenant, or of all.
    fn rank(&self, walk: &mut Walk, given: &Given, only: Option<TenantId>) {
        let mut known: Notes<(TenantId, Used)> = Notes::new();
        for at in 0..walk.heads.len() {
            let head = walk.heads[at];
            let Head { lane, place, .. } = head;
            if only.is_some_and(|tenant| tenant != lane.tenant) {
                continue;
            }
            let used = match known.iter().find(|(tenant, _)| *tenant == lane.tenant) {
                _ if self.shares.is_none() => Used::default(),
                Some((_, used)) => *used,
                None => {
                    let used = self.tenant_used(lane.tenant, given);
                    known.push((lane.tenant, used));
                    used
                }
            };
            let borrows = !self.is_entitled(&head, &walk.heads, given);
            let has_more = self.shares.is_some() && self.has_more_than_holder(&head, &walk.heads);
            let level = Reverse(lane.level);
            walk.heads[at].rank =
                (borrows, level, place.unpromised, has_more, used, place.used, place.ticket);
        }
    }

    /// True if a fellow that holds what a client could use will have used less than it when their tenant is even with another
    /// one that waits: until then it is the holder's turn (`turn`), and then that of the other tenant.
    fn has_more_than_holder(&self, head: &Head, heads: &[Head]) -> bool {
        let LaneKey { tenant, level, .. } = head.lane;
        let gpus = match head.line {
            Some(gpu) => std::slice::from_ref(&self.gpus[gpu.index()]),
            None => &self.gpus,
        };
        let fellow = |gpu: &GpuState| {
            let mut holders = gpu.holders.iter().map(|id| &self.clients[id]);
            holders.find(|it| {
                (it.tenant, it.level) == (tenant, level)
                    && it.member.is_none()
                    && it.used < head.place.used
            })
        };
        if !gpus.iter().all(|gpu| fellow(gpu).is_some()) {
            return false; // the usual case
        }
        let others = heads.iter().filter(|other| {
            let meets = head.line.zip(other.line).is_none_or(|(own, other)| own == other);
            meets && other.lane.tenant != tenant && other.lane.level == level
        });
        let least = others.map(|it| self.tenant_used(it.lane.tenant, &Given::default())).min();
        least.is_some_and(|least| {
            gpus.iter().filter_map(fellow).all(|fellow| {
                let lease = fellow.lease.as_ref().expect("a holder has a lease");
                let counts = self.behind(fellow, lease, least);
                let counts = counts.max(self.counts_with_quantum(lease)) * lease.gpus.len() as f64;
                fellow.used.0 + counts < head.place.used.0
            })
        })
    }

    /// True if a client is the first of its tenant, and within the guarantee.
    fn is_entitled(&self, head: &Head, heads: &[Head], given: &Given) -> bool {
        let lane = head.lane;
        let tenant = self.tenants.of(lane.tenant);
        let own = |head: &Head| (Reverse(head.lane.level), head.place);
        tenant.guarantee > 0
            && !given.unfit.contains(&lane.tenant)
            && tenant.held + given.to_tenant(lane.tenant) + lane.width <= tenant.guarantee
            && heads.iter().all(|other| other.lane.tenant != lane.tenant || own(other) >= own(head))
    }

    /// By how many GPUs a client of this lane would exceed what its tenant and its queue may hold.
    pub(crate) fn excess(&self, lane: LaneKey, given: &Given) -> Excess {
        let tenant = self.tenants.of(lane.tenant);
        let queue = self.queues.of(lane.queue);
        let beyond = |held: u32, given: u32, limit: Option<u32>| {
            limit.map_or(0, |limit| (held + given + lane.width).saturating_sub(limit))
        };
        Excess {
            tenant: beyond(tenant.held, given.to_tenant(lane.tenant), tenant.limit),
            queue: beyond(queue.held, given.to_queue(lane.queue), queue.max_gpus),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_level_is_in_the_same_order_and_leads_back() {
        let ends = [-100, -99, -1, 0, 1, 99, 100].map(|number| Priority::new(number).unwrap());
        let levels = ends.into_iter().flat_map(|queue| ends.map(|own| Level { queue, own }));
        let levels: Vec<Level> = levels.collect();
        assert!(levels.is_sorted_by_key(|level| level.number()));
        assert!(levels.iter().all(|level| Level::of_number(level.number()) == *level));
        let usual = Level { queue: Priority::default(), own: Priority::default() };
        assert_eq!(usual.number(), 0);
        assert_eq!(Level::of_number(i32::MAX).queue, usual.queue);
        assert_eq!(Level::of_number(i32::MIN).queue, usual.queue);
    }
}
