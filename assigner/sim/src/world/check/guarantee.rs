//! Whom its tenant's guarantee covers, and until when.

use std::time::Duration;

use acb_core::{Eligible, Time};

use crate::world::World;
use crate::world::client::Client;

impl World<'_, '_> {
    /// If all that a client's tenant wants now, this request included, is within its guarantee, and nobody stands between it
    /// and a GPU who is within a guarantee, too: how long a page-in may go on that it has to wait for.
    pub(super) fn guaranteed(&self, asking: usize) -> Option<Duration> {
        let spec = &self.scenario.clients[asking];
        let mut tenants = self.scenario.nodes[spec.node].config.tenants.iter();
        let tenant = tenants.find(|tenant| tenant.name == spec.tenant)?;
        let wanted = |(at, client): (usize, &Client)| {
            let other = &self.scenario.clients[at];
            let counts = other.node == spec.node && other.tenant == spec.tenant;
            let wants = at == asking || client.holds || client.waits.is_some();
            if counts && wants { other.gpus } else { 0 }
        };
        let wanted = self.clients.iter().enumerate().map(wanted).sum::<u32>();
        let bound = self.bound_to(asking);
        // A gang that is about to start is not asked by anybody, and begins as a whole.
        let is_own = self.gangs.members.is_empty()
            && spec.eligible == Eligible::All
            && spec.gpus == 1
            && wanted <= tenant.guarantee
            && !self.is_limited(asking)
            && (!spec.bound && bound.is_empty() || self.is_lent(asking));
        is_own.then(|| {
            let fellows = (0..self.clients.len()).filter(|other| {
                let shares = || self.bound_to(*other).iter().any(|gpu| bound.contains(gpu));
                self.scenario.clients[*other].node == spec.node && (bound.is_empty() || shares())
            });
            // A page-in is not recalled.
            let coming = fellows.filter(|other| self.clients[*other].due.is_some());
            coming.map(|other| self.switching(other)).max().unwrap_or_default()
        })
    }

    /// Whether the GPU to which a client is bound is free, or held by who has borrowed it; of its own tenant, and of those
    /// that wait within a guarantee, nobody is there.
    fn is_lent(&self, asking: usize) -> bool {
        let (own, bound) = (&self.scenario.clients[asking], self.bound_to(asking));
        let fellows = self.clients.iter().zip(&self.scenario.clients).enumerate();
        let mut fellows = fellows.filter(|(at, (client, other))| {
            let on = self.bound_to(*at);
            let shares = on.iter().any(|gpu| bound.contains(gpu));
            *at != asking && other.node == own.node && (shares || on.is_empty() && client.holds)
        });
        !bound.is_empty()
            && fellows.all(|(at, (client, other))| {
                let waits = client.waits.is_some_and(|(_, guaranteed)| guaranteed.is_some());
                let lent = !client.holds || self.borrowed(own.node, at) > 0;
                let wants = client.holds || client.waits.is_some();
                !wants || other.tenant != own.tenant && !waits && lent
            })
    }

    /// A request was granted: since when it waited, and what its tenant's guarantee says of that.
    pub(super) fn check_wait(&mut self, client: usize) -> (Time, Option<Duration>) {
        (self.clients[client].holds, self.clients[client].leaves) = (true, false);
        self.clients[client].waits.take().unwrap_or((self.now, None))
    }

    /// A client asks: others may have to wait for it whose tenants' guarantees covered what they asked for until now.
    pub(super) fn come_before(&mut self, asking: usize) {
        let spec = &self.scenario.clients[asking];
        let config = &self.scenario.nodes[spec.node].config;
        let guaranteed = |name: &str| {
            let tenant = config.tenants.iter().find(|tenant| tenant.name == name);
            tenant.map_or(0, |tenant| tenant.guarantee)
        };
        if guaranteed(&spec.tenant) == 0 {
            return;
        }
        for at in 0..self.clients.len() {
            let other = &self.scenario.clients[at];
            let goes_first = self.level(asking) > self.level(at) || config.fair_share.is_some();
            let (one, two) = (self.bound_to(asking), self.bound_to(at));
            let meet = one.is_empty() || two.is_empty() || one.iter().any(|gpu| two.contains(gpu));
            if other.node == spec.node
                && at != asking
                && goes_first
                && meet
                && let Some((_, guaranteed)) = &mut self.clients[at].waits
            {
                *guaranteed = None;
            }
        }
    }
}
