//! What a node knows of a gang with members on it: its stage, what it lacks, when it is due.

use super::*;

impl Local {
    pub(super) fn new(size: u32) -> Local {
        Local {
            size,
            members: BTreeMap::new(),
            round: Round(0),
            stage: InRound::Out,
            route: Route::Controller,
            wanted: None,
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
                Stage::Holding { busy, wanted: self.wanted.is_some() }
            }
            InRound::Ending => Stage::Ending,
        }
    }

    /// When members have been apart for too long.
    pub(super) fn due(&self, timing: &Timing) -> Option<Time> {
        let states = self.members.values().map(|member| member.state);
        match (self.stage, self.wanted) {
            (InRound::Out, _) if !self.urgent => states
                .filter_map(|state| match state {
                    Claim::Waits(since) => Some(since.after(timing.slack)),
                    _ => None,
                })
                .min(),
            (InRound::Holding, Some(wanted)) => states
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
            waiting: count(waiting),
            urgent: self.urgent,
            priority: members().map(|member| member.priority).max().unwrap_or(0),
            width: members().map(|member| member.width).sum(),
            gpus: self.gpus(),
            round: self.round,
            stage: self.stage(),
        }
    }

    /// Why the gang can never hold its leases, as far as this node knows.
    pub(super) fn impossible(&self, config: &NodeConfig) -> Option<GangRefusal> {
        if !config.exclusive {
            return None;
        }
        let wanted: u32 = self.members.values().map(|member| member.width).sum();
        let gpus = self.seats();
        if gpus < wanted {
            return Some(GangRefusal::LargerThanNode { wanted, gpus });
        }
        let missing = self.size.saturating_sub(count(self.members.len()));
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
        let mut taken: BTreeMap<Gpu, usize> = BTreeMap::new();
        let placed = (0..wishes.len())
            .filter(|wish| place(*wish, &wishes, &mut taken, &mut BTreeSet::new()))
            .count();
        count(placed)
    }
}

impl Member {
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, Claim::Waits(_))
    }
}
