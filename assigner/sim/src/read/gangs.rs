//! `gang`: which clients hold their leases at the same time, and whether they ever can.

use std::collections::BTreeMap;
use std::ops::Range;

use acb_core::gang::GangName;
use toml::Spanned;

use super::{PlacedNode, Reader};
use crate::scenario::{Client, Work};

/// Where each gang is named first, and how many rounds its members do.
#[derive(Default)]
pub(super) struct Gangs(BTreeMap<GangName, (Range<usize>, Option<u64>)>);

impl Reader<'_> {
    /// A group of clients is part of a gang.
    pub(super) fn member(&mut self, gang: &Spanned<String>, work: &Work, gangs: &mut Gangs) {
        let place = gang.span();
        if gang.get_ref().is_empty() {
            self.say(place.clone(), "a gang has a name");
        }
        let Work::Rounds { rounds, .. } = work else {
            self.say(place, "members of a gang do rounds, together: they cannot serve requests")
                .help("take `cpu_s` and `rounds` instead of `per_s` or `every_s`");
            return;
        };
        let name = GangName::from(gang.get_ref().as_str());
        let (first, others) = gangs.0.entry(name).or_insert((place.clone(), *rounds));
        if others != rounds {
            let first = first.clone();
            self.say(place, "the members of a gang do the same number of rounds")
                .related(first, "the others are here");
        }
    }

    /// Counts the members of all gangs, and refuses what could never start.
    pub(super) fn gangs(&mut self, gangs: &Gangs, nodes: &[PlacedNode], clients: &mut [Client]) {
        for (gang, (place, _)) in &gangs.0 {
            let is_member =
                |client: &&mut Client| client.gang.as_ref().is_some_and(|it| it.name == *gang);
            let mut members: Vec<&mut Client> = clients.iter_mut().filter(is_member).collect();
            let size = u32::try_from(members.len()).unwrap_or(u32::MAX);
            for member in &mut members {
                member.gang.iter_mut().for_each(|it| it.size = size);
            }
            for (at, PlacedNode { node, place: there }) in nodes.iter().enumerate() {
                let here: Vec<&&mut Client> =
                    members.iter().filter(|client| client.node == at).collect();
                let wanted: u64 = here.iter().map(|client| u64::from(client.gpus)).sum();
                // Also where several clients share a GPU, a gang needs one for each of its members.
                let has = node.config.gpus.len() as u64;
                let mut standing: BTreeMap<(&str, &str), u32> = BTreeMap::new();
                for client in here {
                    let width = standing.entry((&client.tenant, &client.queue)).or_default();
                    *width = width.saturating_add(client.gpus);
                }
                for ((tenant, queue), width) in standing {
                    self.within(width, place, tenant, queue);
                }
                if wanted > has {
                    let message = format!(
                        "the members of this gang on node \"{}\" need {wanted} GPUs at the same time, but it has {has}: \
                         it could never start",
                        node.name
                    );
                    self.say(place.clone(), message).related(there.clone(), "this node");
                }
            }
        }
    }
}
