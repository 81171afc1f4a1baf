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
use crate::scheduler::Scheduler;

impl Scheduler {
    /// When a lease is recalled for somebody of the same rank: after its quantum, and when its holder has used as much; not
    /// later than others may be let go before who waits.
    pub(crate) fn turn_ends(&self, who: &Claimant, holder: ClientId) -> Time {
        let (lease, client) = (self.lease(holder), &self.clients[&holder]);
        let end = lease.latest_recall(&self.config);
        let is_fellow = who.lane.tenant == client.tenant;
        let by_share = who.lane.level == client.level && (is_fellow || !who.entitled);
        let Some(shares) = self.shares.filter(|_| by_share && lease.is_ready) else { return end };
        if lease.yields < NEVER || client.member.is_some() {
            return end; // it is given back in time for others; a gang has turns of its own
        }
        let at_once = Given::default();
        let (waits, holds, weight) = if is_fellow {
            (self.clients[&who.client].used, client.used.0, 1)
        } else {
            let tenant = self.tenants.of(client.tenant);
            // What its tenant's other leases count, but not this one.
            let own = self.now.since(lease.granted).max(self.config.quantum);
            let own = self.counts(own, lease.gpus.len()) / f64::from(tenant.weight);
            let used = self.tenant_used(client.tenant, &at_once).0 - own;
            (self.tenant_used(who.lane.tenant, &at_once), used, tenant.weight)
        };
        let rate = lease.gpus.len() as f64 / f64::from(weight);
        let is_even = |at: Time| {
            let span = at.since(lease.granted).as_secs_f64();
            holds + span * rate * shares.worth_at(at) >= waits.0
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
}
