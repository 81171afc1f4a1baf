//! What tenants, queues and policies allow: a client that wants more than that could never start.

use std::ops::Range;

use acb_core::Policy;
use toml::Spanned;

use super::{PlacedNode, Reader};

/// The most GPUs that the clients of a tenant or queue may hold on a node.
pub(super) struct PlacedLimit {
    /// "tenant" or "queue".
    kind: &'static str,
    name: String,
    most: u32,
    place: Range<usize>,
}

impl PlacedLimit {
    pub(super) fn new(kind: &'static str, name: &str, limit: &Spanned<u32>) -> PlacedLimit {
        let (most, place) = (*limit.get_ref(), limit.span());
        PlacedLimit { kind, name: name.to_owned(), most, place }
    }

    /// Whether clients of this tenant, in this queue, are below it.
    fn holds(&self, tenant: &str, queue: &str) -> bool {
        self.name == if self.kind == "tenant" { tenant } else { queue }
    }
}

impl Reader<'_> {
    /// A group of clients wants so many GPUs each, in the name of a tenant and in a queue.
    pub(super) fn standing(
        &mut self,
        width: &Spanned<u32>,
        tenant: &str,
        queue: &str,
        nodes: &[PlacedNode],
        node: Option<usize>,
    ) {
        let (wanted, place) = (*width.get_ref(), width.span());
        self.within(wanted, &place, tenant, queue);
        let mut possible =
            nodes.iter().enumerate().filter(|(at, _)| node.is_none_or(|node| node == *at));
        let Some((_, PlacedNode { node, .. })) = possible.next() else { return };
        let named = node.config.queues.iter().find(|other| other.name == queue);
        let policy = named.and_then(|queue| queue.policy).unwrap_or(node.config.policy);
        if wanted > 1 && policy != Policy::GpuAffinity {
            self.say(place, format!("policy {policy} gives one GPU to a client"))
                .help("take `policy = \"gpu-affinity\"`, for all or for a queue");
        }
    }

    /// So many GPUs are wanted at the same time, on one node.
    pub(super) fn within(&mut self, wanted: u32, place: &Range<usize>, tenant: &str, queue: &str) {
        let below = |limit: &&PlacedLimit| limit.holds(tenant, queue) && wanted > limit.most;
        let Some(limit) = self.limits.iter().find(below) else { return };
        let message = format!(
            "{wanted} GPUs are wanted at the same time, but {} \"{}\" may hold {}: it could never start",
            limit.kind, limit.name, limit.most
        );
        let there = limit.place.clone();
        self.say(place.clone(), message).related(there, "this limit");
    }
}
