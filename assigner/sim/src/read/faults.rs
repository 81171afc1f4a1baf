//! `[[fault]]`: what goes wrong, and when.

use std::ops::Range;
use std::time::Duration;

use acb_cluster_conf::fields::{Fields, boolean, integer, string};
use acb_cluster_conf::nearest;
use acb_core::Gpu;
use toml::Spanned;

use super::{PlacedNode, Reader, gibibytes, or, seconds};
use crate::scenario::{Client, Fault, FaultKind};

impl Reader<'_> {
    pub(super) fn faults(
        &mut self,
        top: &mut Fields<'_, '_>,
        nodes: &[PlacedNode],
        clients: &[Client],
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        let has_controller = nodes.len() > 1 && clients.iter().any(|client| client.gang.is_some());
        for (place, mut fields) in top.sections("fault", self.problems) {
            let at = fields.read("at_s", self.problems, seconds);
            let lasts = fields.read("for_s", self.problems, seconds);
            let kill = fields.read("kill", self.problems, string);
            let stop = fields.read("stop", self.problems, string);
            let restart = fields.read("restart", self.problems, string);
            let cut = fields.read("cut", self.problems, string);
            let crash = fields.read("crash", self.problems, string);
            let controller = fields.read("controller", self.problems, boolean);
            let outside = fields.read("outside", self.problems, string);
            let gpu = fields.read("gpu", self.problems, |v| integer::<u32>(v, 0, 1023, ""));
            let memory = fields.read("memory_gib", self.problems, gibibytes);
            fields.finish(self.problems);
            let at = match at {
                Some(at) => at.into_inner(),
                None => {
                    self.say(place.clone(), "this fault says no time").help("add `at_s`");
                    continue;
                }
            };
            let lasts = or(lasts, Duration::from_secs(1));
            let named = [&kill, &stop, &restart, &cut, &crash, &outside];
            let given = controller.is_some() || named.iter().any(|name| name.is_some());
            let mut client = |name: Option<Spanned<String>>| {
                let names = clients.iter().map(|client| client.name.as_str());
                name.and_then(|name| self.named("client", &name, names))
            };
            let (kill, stop) = (client(kill), client(stop));
            let needs_controller = match (&cut, &controller) {
                (Some(cut), _) => Some(cut.span()),
                (None, Some(dies)) => Some(dies.span()),
                (None, None) => None,
            };
            if let Some(place) = needs_controller.filter(|_| !has_controller) {
                self.say(place, "there is no controller: nothing would happen")
                    .help("a scenario with gangs (`gang`) and several nodes has one");
            }
            let mut node = |name: Option<Spanned<String>>| {
                let names = nodes.iter().map(|node| node.node.name.as_str());
                name.and_then(|name| self.named("node", &name, names))
            };
            let (restart, cut, crash) = (node(restart), node(cut), node(crash));
            let outside = node(outside).and_then(|node| {
                let gpus = nodes[node].node.config.gpus.len();
                if let Some(gpu) = gpu.as_ref().filter(|gpu| *gpu.get_ref() as usize >= gpus) {
                    self.say(gpu.span(), format!("the node has {gpus}, counted from 0"));
                    return None;
                }
                let (gpu, bytes) = (Gpu(or(gpu, 0)), or(memory, u64::MAX));
                Some(FaultKind::Outside { node, gpu, bytes, lasts })
            });
            let controller = controller.filter(|dies| *dies.get_ref());
            let kinds = [
                kill.map(FaultKind::Kill),
                stop.map(|client| FaultKind::Stop(client, lasts)),
                restart.map(|node| FaultKind::Restart(node, lasts)),
                cut.map(|node| FaultKind::Cut(node, lasts)),
                crash.map(|node| FaultKind::Crash(node, lasts)),
                controller.map(|_| FaultKind::Controller(lasts)),
                outside,
            ];
            let kinds: Vec<FaultKind> = kinds.into_iter().flatten().collect();
            match <[FaultKind; 1]>::try_from(kinds) {
                Ok([what]) => faults.push(Fault { at, what }),
                Err(kinds) if !kinds.is_empty() || !given => self.not_one(place, kinds.len()),
                Err(_) => {} // the name was wrong, as has been said
            }
        }
        faults
    }

    fn not_one(&mut self, place: Range<usize>, count: usize) {
        let known = "a fault is one of `kill`, `stop` (they name a client), `restart`, `cut`, `crash`, `outside` (they \
                     name a node) and `controller = true`";
        match count {
            0 => drop(self.say(place, "this fault does nothing").help(known)),
            _ => drop(self.say(place, "several faults in one section").help(known)),
        }
    }

    /// The position of a name in a list.
    fn named<'a>(
        &mut self,
        what: &str,
        wanted: &Spanned<String>,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<usize> {
        let found = names.clone().position(|name| name == wanted.get_ref());
        if found.is_none() {
            let message =
                format!("there is no {what} named \"{}\"", wanted.get_ref().escape_debug());
            let help = match nearest(wanted.get_ref(), names) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!(
                    "name one of the [[{what}]] sections; of several alike the number follows, as in \"name-0\""
                ),
            };
            self.say(wanted.span(), message).help(help);
        }
        found
    }
}
