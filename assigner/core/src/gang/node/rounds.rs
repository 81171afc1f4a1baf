//! What follows from a change: the arbiters are told, and what they say is done.
//!
//! Owns: the order of the two. Does not own: the changes ([`Node::handle`]).

use super::*;

impl Node {
    /// Does what follows from a change: tells the arbiters, and does what they say.
    pub(super) fn follow(&mut self, now: Time) {
        if self.lost_at.is_some_and(|at| at <= now) {
            self.lost_at = None;
            let lost = self.gangs.iter().filter(|(_, gang)| gang.route == Route::Controller);
            for name in lost.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                self.end(&name);
            }
        }
        self.arbiter.decide(now); // something may be due
        loop {
            while let Some(name) = self.dirty.pop_first() {
                self.follow_one(&name, now);
            }
            self.arbiter.decide(now);
            if let Some((_, orders)) = self.arbiter.poll_orders() {
                self.dirty.extend(orders.keys().cloned());
            } else if let Some(next) = self.line.iter().find(|name| !self.must_wait(name)) {
                self.dirty.insert(next.clone());
            } else {
                break;
            }
        }
        if let Some(link) = &mut self.link {
            link.set(&self.site, now);
            let report = link.poll(now, self.config.timing.retry);
            self.actions.extend(report.map(NodeAction::Send));
        }
    }

    fn follow_one(&mut self, name: &GangName, now: Time) {
        let Some(gang) = self.gangs.get_mut(name) else { return };
        gang.refusal.take_if(|(_, until)| *until <= now);
        let order = match gang.route {
            Route::Here => self.arbiter.order(HERE, name),
            Route::Controller => {
                self.link.as_ref().and_then(Link::theirs).and_then(|all| all.get(name))
            }
        };
        if gang.is_over(&self.config, order.is_some_and(|order| order.over)) {
            self.gangs.remove(name);
            self.line.retain(|waits| waits != name);
            self.arbiter.hear_one(HERE, name.clone(), None);
            self.site.gangs.remove(name);
            return;
        }
        if gang.stage == InRound::Out {
            gang.route = if gang.is_local() { Route::Here } else { Route::Controller };
        }
        let order = match gang.route {
            Route::Here => self.arbiter.order(HERE, name).cloned(),
            Route::Controller => {
                self.link.as_ref().and_then(Link::theirs).and_then(|all| all.get(name)).cloned()
            }
        };
        match order {
            Some(order) => self.obey(name, &order, now),
            None => self.line.retain(|waits| waits != name),
        }
        let Some(gang) = self.gangs.get_mut(name) else { return };
        let is_due = gang.apart(&self.config.timing).is_some_and(|at| at <= now);
        gang.due |= is_due && gang.stage == InRound::Holding;
        gang.served = gang.turn.is_some_and(|until| until <= now);
        let is_waited_in = gang.members.values().any(Member::waits);
        gang.urgent = gang.stage == InRound::Out && is_waited_in && (gang.urgent || is_due);
        let standing = gang.standing();
        match gang.route {
            Route::Here => {
                self.site.gangs.insert(name.clone(), standing.without_news());
                self.arbiter.hear_one(HERE, name.clone(), Some(standing));
            }
            Route::Controller => {
                self.site.gangs.insert(name.clone(), standing);
                self.arbiter.hear_one(HERE, name.clone(), None);
            }
        }
    }

    /// True while another gang here keeps GPUs that this one needs, or is to do so first. Two that
    /// keep at the same time could each get a part.
    fn must_wait(&self, name: &GangName) -> bool {
        let Some(gang) = self.gangs.get(name) else { return false };
        let needs = gang.gpus();
        let conflicts = |other: &Local| !needs.is_disjoint(&other.gpus());
        let keeps = |other: &Local| {
            matches!(
                other.stage,
                InRound::Keeping { .. } | InRound::Reachable { .. } | InRound::Kept
            )
        };
        let mut others = self.gangs.iter().filter(|(other, _)| *other != name);
        let mut before = self.line.iter().take_while(|other| *other != name);
        others.any(|(_, other)| keeps(other) && conflicts(other))
            || before.any(|other| self.gangs.get(other).is_some_and(conflicts))
    }

    fn obey(&mut self, name: &GangName, order: &GangOrder, now: Time) {
        if let Some((most, reason)) = &order.most {
            let gang = &self.gangs[name];
            let mut members: Vec<_> =
                gang.members.iter().map(|(client, member)| (member.joined, *client)).collect();
            members.sort_unstable();
            for (_, client) in members.into_iter().skip(*most as usize) {
                self.refuse(client, reason.clone());
            }
        }
        let gang = &self.gangs[name];
        let is_called = gang.stage == InRound::Out
            && !gang.members.is_empty()
            && matches!(order.step, Some((round, Step::Keep)) if round > gang.round);
        if is_called && self.must_wait(name) {
            if !self.line.contains(name) {
                self.line.push(name.clone());
            }
            return;
        }
        self.line.retain(|waits| waits != name);
        let gang = self.gangs.get_mut(name).expect("the caller has looked it up");
        let Some((round, step)) = order.step else { return };
        let is_present = round == gang.round;
        match (step, gang.stage) {
            (Step::Keep, InRound::Out) if is_called => {
                gang.round = round;
                gang.stage = InRound::Keeping { firm: false };
                let priority = order.priority;
                self.actions.push_back(NodeAction::Keep { gang: name.clone(), priority });
            }
            (Step::Firm, InRound::Keeping { firm: false }) if is_present => {
                gang.stage = InRound::Keeping { firm: true };
                self.actions.push_back(NodeAction::Firm(name.clone()));
            }
            (Step::Firm, InRound::Reachable { firm: false }) if is_present => {
                gang.stage = InRound::Reachable { firm: true };
                self.actions.push_back(NodeAction::Firm(name.clone()));
            }
            (Step::Go { .. }, InRound::Kept) if is_present => {
                gang.stage = InRound::Holding;
                let is_asked_for = gang.members.values().any(Member::waits);
                gang.turn = (!is_asked_for).then_some(now);
                self.actions.push_back(NodeAction::Grant(name.clone()));
            }
            (Step::Go { wanted: true }, InRound::Holding) if is_present => self.want(name, now),
            (Step::End, _) if round >= gang.round => {
                gang.round = round;
                self.end(name);
            }
            _ => {}
        }
    }
}
