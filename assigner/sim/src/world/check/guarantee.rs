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
            let fellows: Vec<usize> = fellows.collect();
            // A page-in is not recalled.
            let coming = fellows.iter().filter(|other| self.clients[**other].due.is_some());
            let coming = coming.map(|other| self.switching(*other)).max().unwrap_or_default();
            // Each makes way at once for the same request once: it goes on with that, and may meet those that have.
            let kept = self.clients[asking].gave_way.then(|| self.keeping(spec.node, &fellows));
            coming + kept.unwrap_or_default()
        })
    }

    /// How long one of these clients has a GPU that is not recalled at once: until its memory is there, for a quantum
    /// that is worth the switch, and until it has stopped.
    pub(super) fn keeping(&self, node: usize, clients: &[usize]) -> Duration {
        let config = &self.scenario.nodes[node].config;
        let switch = clients.iter().map(|client| self.switching(*client)).max();
        let switch = switch.unwrap_or_default();
        let worth = switch.mul_f64((1.0 - config.switch_share) / config.switch_share);
        switch + config.quantum.max(worth) + self.stopping(node)
    }

    /// Whether the GPU to which a client is bound is free, or held by who has borrowed it; of its own tenant, and of those
    /// that may wait within a guarantee, nobody is there or could be.
    fn is_lent(&self, asking: usize) -> bool {
        let (own, bound) = (&self.scenario.clients[asking], self.bound_to(asking));
        let fellows = self.clients.iter().zip(&self.scenario.clients).enumerate();
        let mut fellows = fellows.filter(|(at, (client, other))| {
            let on = self.bound_to(*at);
            let shares = on.iter().any(|gpu| bound.contains(gpu));
            let wants = client.holds || client.waits.is_some();
            *at != asking && other.node == own.node && (shares || on.is_empty() && wants)
        });
        !bound.is_empty()
            && fellows.all(|(at, (client, other))| {
                let waits = client.waits.is_some() && self.has_guarantee(at);
                let lent = !client.holds || self.borrowed(own.node, at) > 0;
                let wants = client.holds || client.waits.is_some();
                !wants || other.tenant != own.tenant && !waits && lent
            })
    }

    /// Whether a client's tenant has a guarantee.
    pub(super) fn has_guarantee(&self, client: usize) -> bool {
        let spec = &self.scenario.clients[client];
        let mut tenants = self.scenario.nodes[spec.node].config.tenants.iter();
        tenants.any(|tenant| tenant.name == spec.tenant && tenant.guarantee > 0)
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
        if !self.has_guarantee(asking) {
            return;
        }
        for at in 0..self.clients.len() {
            let other = &self.scenario.clients[at];
            let goes_first = self.level(asking) > self.level(at) || config.fair_share.is_some();
            let (one, two) = (self.bound_to(asking), self.bound_to(at));
            let meet = one.is_empty() || two.is_empty() || one.iter().any(|gpu| two.contains(gpu));
            // A guarantee is for its tenant's first request, wherever that waits.
            let meet = meet || other.tenant == spec.tenant;
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
