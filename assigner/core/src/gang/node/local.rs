//! What a node knows of a gang with members on it: its stage, what it lacks, when it is due.

use super::*;

impl Local {
    pub(super) fn new(size: u32) -> Local {
        Local {
            size,
            members: BTreeMap::new(),
            left: 0,
            away: 0,
            refusal: None,
            round: Round(0),
            stage: InRound::Out,
            route: Route::Controller,
            wanted: None,
            turn: None,
            served: false,
            due: false,
            urgent: false,
        }
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage {
            InRound::Out => Stage::Out,
            InRound::Keeping { .. } => Stage::Keeping,
            InRound::Reachable { .. } => Stage::Reachable,
            InRound::Kept => Stage::Kept,
            InRound::Holding => {
                let is_busy = |member: &Member| !matches!(member.state, Claim::Idle(_));
                let busy = self.members.values().any(is_busy);
                let (wanted, served, due) = (self.wanted.is_some(), self.served, self.due);
                Stage::Holding { busy, wanted, served, due }
            }
            InRound::Ending => Stage::Ending,
        }
    }

    /// All members have come to this node.
    pub(super) fn is_local(&self) -> bool {
        count(self.members.len()) + self.left >= self.size
    }

    /// Nothing of it is left here that anybody could want to know.
    pub(super) fn is_over(&self, config: &NodeConfig, told: bool) -> bool {
        let known = told || config.alone || self.left == 0;
        self.members.is_empty()
            && self.away == 0
            && self.stage == InRound::Out
            && (self.is_local() || known && self.refusal.is_none())
    }

    /// When something is to be looked at again: members have been apart for too long, or have had their turn.
    pub(super) fn deadline(&self, timing: &Timing) -> Option<Time> {
        let turn = self.turn.filter(|_| self.stage == InRound::Holding && !self.served);
        self.apart(timing).into_iter().chain(turn).min()
    }

    /// When members have been apart for too long.
    pub(super) fn apart(&self, timing: &Timing) -> Option<Time> {
        if self.members.is_empty() {
            return self.refusal.as_ref().map(|(_, until)| *until);
        }
        let states = self.members.values().map(|member| member.state);
        match (self.stage, self.wanted) {
            (InRound::Out, _) if !self.urgent => states
                .filter_map(|state| match state {
                    Claim::Waits(since) => Some(since.after(timing.slack)),
                    _ => None,
                })
                .min(),
            (InRound::Holding, Some(wanted)) if !self.due => states
                .filter_map(|state| match state {
                    Claim::Idle(since) => Some(since.max(wanted).after(timing.slack)),
                    _ => None,
                })
                .min(),
            _ => None,
        }
    }

    pub(super) fn gpus(&self) -> BTreeSet<Gpu> {
        self.members.values().flat_map(|member| member.gpus.iter().copied()).collect()
    }

    pub(super) fn standing(&self) -> Standing {
        let members = || self.members.values();
        // What does not matter in a round is not told: it would only make messages.
        let is_out = self.stage == InRound::Out;
        let waiting = if is_out { members().filter(|it| it.waits()).count() } else { 0 };
        Standing {
            size: self.size,
            members: count(self.members.len()),
            left: self.left,
            away: self.away,
            waiting: count(waiting),
            urgent: self.urgent,
            priority: members().map(|member| member.priority).max().unwrap_or(0),
            width: members().map(|member| member.width).sum(),
            gpus: self.gpus(),
            round: self.round,
            stage: self.stage(),
            refusal: self.refusal.as_ref().map(|(refusal, _)| refusal.clone()),
        }
    }

    /// Why the gang can never hold its leases, as far as this node knows.
    pub(super) fn impossible(&self, config: &NodeConfig) -> Option<GangRefusal> {
        let limits = self.members.values().flat_map(|member| &member.limits);
        for limit in limits.collect::<BTreeSet<&Limit>>() {
            let under = self.members.values().filter(|member| member.limits.contains(limit));
            let wanted: u32 = under.map(|member| member.width).sum();
            if wanted > limit.most {
                return Some(GangRefusal::BeyondLimit { wanted, limit: limit.clone() });
            }
        }
        if !config.exclusive {
            return None;
        }
        let wanted: u32 = self.members.values().map(|member| member.width).sum();
        let gpus = self.seats();
        if gpus < wanted {
            return Some(GangRefusal::LargerThanNode { wanted, gpus });
        }
        let missing = self.size.saturating_sub(count(self.members.len()) + self.left);
        let wanted = wanted.saturating_add(missing);
        (config.alone && wanted > config.gpus)
            .then_some(GangRefusal::LargerThanJob { wanted, gpus: config.gpus })
    }

    /// How many of the GPUs that its members need they can have at the same time.
    pub(super) fn seats(&self) -> u32 {
        let wishes: Vec<&BTreeSet<Gpu>> = self
            .members
            .values()
            .flat_map(|member| std::iter::repeat_n(&member.gpus, member.width as usize))
            .collect();
        count(placed(&wishes))
    }
}

impl Member {
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, Claim::Waits(_))
    }
}
