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
    /// When a lease is recalled for somebody of the same rank: after its quantum, and when its holder has used as much (its
    /// tenant, if who waits is of another one); not later than others may be let go before who waits.
    pub(crate) fn turn_ends(&self, who: &Claimant, holder: ClientId) -> Time {
        let (lease, client) = (self.lease(holder), &self.clients[&holder]);
        let end = lease.latest_recall(&self.config);
        let is_fellow = who.lane.tenant == client.tenant;
        let by_share = who.lane.level == client.level && (is_fellow || !who.entitled);
        if self.shares.is_none() || !by_share || !lease.is_ready {
            return end;
        }
        if lease.yields < NEVER || client.member.is_some() {
            return end; // it is given back in time for others; a gang has turns of its own
        }
        let gap = if is_fellow {
            (self.clients[&who.client].used.0 - client.used.0) / lease.gpus.len() as f64
        } else {
            let waits = self.tenant_used(who.lane.tenant, &Given::default());
            self.behind(client, lease, waits)
        };
        let is_even = |at: Time| self.counts_until(lease, at) >= gap;
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

    /// What a lease has to count on each of its GPUs for its tenant to have used as much as another one.
    pub(crate) fn behind(&self, holder: &Client, lease: &Lease, other: Used) -> f64 {
        let weight = f64::from(self.tenants.of(holder.tenant).weight);
        let used = self.tenant_used(holder.tenant, &Given::default());
        (other.0 - used.0) * weight / lease.gpus.len() as f64 + self.counts_with_quantum(lease)
    }
}
