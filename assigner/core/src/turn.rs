//! Turns between those who have used different amounts: when a lease is asked back that its holder has by fair share.
//!
//! ```text
//!  used │        ┌────────── who waits
//!       │   .·´  │ a turn ends here: the quantum is over, and the holder has used as much
//!       │.·´     │
//!       └────────┴──► time
//! ```
//! Who is asked back is not in line for the grant that follows, so of two clients each gets every second grant. If all turns were as long, the
//! one with the longer kernels, or with more memory to move, would get more, for ever.
//!
//! Owns: the end of a turn. Does not own: the order of those who wait (`order`), who may have whose lease recalled (`recall`).

use crate::ids::{ClientId, Time};
use crate::order::Given;
use crate::recall::{Claimant, NEVER};
use crate::scheduler::{Client, Lease, Scheduler};
use crate::tenant::Used;

impl Scheduler {
    /// When a lease is recalled for somebody of the same rank: after its quantum, and when its holder has used as much; not
    /// later than others may be let go before who waits. Among clients of a tenant it goes on no longer than until the tenant itself
    /// has used as much as another one that waits.
    pub(crate) fn turn_ends(&self, who: &Claimant, holder: ClientId) -> Time {
        let (lease, client) = (self.lease(holder), &self.clients[&holder]);
        let end = lease.latest_recall(&self.config);
        let is_fellow = who.lane.tenant == client.tenant;
        let by_share = who.lane.level == client.level && (is_fellow || !who.entitled);
        let Some(shares) = self.shares.filter(|_| by_share && lease.is_ready) else { return end };
        if lease.yields < NEVER || client.member.is_some() {
            return end; // it is given back in time for others; a gang has turns of its own
        }
        let gpus = lease.gpus.len() as f64;
        let mut gaps = [None; 2];
        let other = match is_fellow {
            true => {
                let waits = self.clients[&who.client].used.0;
                gaps[0] = Some((waits - client.used.0, gpus));
                self.least_used_beside(client, lease)
            }
            false => Some(self.tenant_used(who.lane.tenant, &Given::default())),
        };
        gaps[1] = other.map(|waits| {
            let tenant = self.tenants.of(client.tenant);
            let weight = f64::from(tenant.weight);
            // What its tenant's other leases count, but not this one.
            let own = self.now.since(lease.granted).max(self.config.quantum);
            let own = self.counts(own, lease.gpus.len()) / weight;
            let used = self.tenant_used(client.tenant, &Given::default()).0 - own;
            (waits.0 - used, gpus / weight)
        });
        let is_even = |at: Time| {
            let worth = at.since(lease.granted).as_secs_f64() * shares.worth_at(at);
            gaps.iter().flatten().any(|(gap, rate)| worth * rate >= *gap)
        };
        if is_even(end) {
            return end;
        }
        // What counts grows ever faster: halving finds the moment.
        let (mut early, mut late) = (end, end.after(self.config.max_bypass_time));
        for _ in 0..36 {
            let middle = early.after(late.since(early) / 2);
            if is_even(middle) { late = middle } else { early = middle }
        }
        late
    }

    /// What the one of the other tenants has used that has used least, of those that wait for GPUs of a lease.
    fn least_used_beside(&self, holder: &Client, lease: &Lease) -> Option<Used> {
        let lines = lease.gpus.iter().map(|gpu| &self.gpus[gpu.index()].line);
        let lanes = lines.chain([&self.floating]).flat_map(|line| line.heads());
        let others = lanes.filter(|(lane, _)| {
            (lane.level, lane.tenant != holder.tenant) == (holder.level, true)
                && self.excess(*lane, &Given::default()).is_none()
        });
        others.map(|(lane, _)| self.tenant_used(lane.tenant, &Given::default())).min()
    }
}
