//! Reading a scenario: TOML in, a [`Scenario`] that makes sense or every problem out, each with its place.
//!
//! Owns: the keys, their defaults and the rules between them. Does not own: how problems look
//! ([`acb_cluster_conf::ConfigError`]).

mod clients;
mod faults;
mod gangs;
mod limits;
mod nodes;
mod set;

use std::ops::Range;
use std::time::Duration;

use acb_cluster_conf::fields::{Fault, Fields, document, integer, number, string};
use acb_cluster_conf::{ConfigError, Problem};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::random::Lengths;
use crate::scenario::{Costs, Node, Scenario};

pub use set::{SetError, set};

/// Longest time in a scenario, seconds: three years.
const LONGEST_S: f64 = 1e8;

/// What the command line says instead of the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides {
    /// The seed.
    pub seed: Option<u64>,
    /// The spread of all phases.
    pub spread: Option<f64>,
}

/// The scenario in a text; `name` is the file's, for messages.
///
/// # Errors
/// The text is not TOML, or what it says makes no sense: all of it, at once.
pub fn read(name: &str, text: &str, overrides: Overrides) -> Result<Scenario, ConfigError> {
    let read = document(text).and_then(|document| {
        let mut problems = Vec::new();
        let mut reader = Reader { problems: &mut problems, overrides, seed: 1, limits: Vec::new() };
        let scenario = reader.file(text, document.get_ref());
        if problems.is_empty() { Ok(scenario) } else { Err(problems) }
    });
    read.map_err(|problems| ConfigError::new(name, text, problems))
}

struct Reader<'p> {
    problems: &'p mut Vec<Problem>,
    overrides: Overrides,
    seed: u64,
    /// Where the limits of tenants and queues stand.
    limits: Vec<limits::PlacedLimit>,
}

impl Reader<'_> {
    fn file(&mut self, text: &str, table: &DeTable<'_>) -> Scenario {
        let mut top = Fields::new("", text, table);
        let title = top.read("title", self.problems, string);
        let seed = top.read("seed", self.problems, |v| integer::<u64>(v, 0, i64::MAX, ""));
        self.seed = self.overrides.seed.unwrap_or(or(seed, 1));
        let stop = top.read("stop_s", self.problems, seconds);
        let steady = self.steady(&mut top, stop.as_ref().map(|stop| *stop.get_ref()));
        let due = top.read("due_s", self.problems, seconds);
        if let (Some(due), Some(stop)) = (&due, &stop)
            && due.get_ref() > stop.get_ref()
        {
            self.say(due.span(), "the run is cut off before all must be done")
                .related(stop.span(), "by this");
        }
        let costs = self.costs(&mut top);
        let mut nodes = self.nodes(&mut top);
        let alone = nodes.len() == 1;
        nodes.iter_mut().for_each(|node| node.node.config.gangs.alone = alone);
        let (groups, clients) = self.clients(&mut top, &nodes, stop.is_some());
        let faults = self.faults(&mut top, &nodes, &clients);
        top.finish(self.problems);
        Scenario {
            title: or(title, String::new()),
            seed: self.seed,
            stop: stop.map(Spanned::into_inner),
            due: due.map(Spanned::into_inner),
            steady,
            nodes: nodes.into_iter().map(|node| node.node).collect(),
            groups,
            clients,
            faults,
            costs,
        }
    }

    fn steady(
        &mut self,
        top: &mut Fields<'_, '_>,
        stop: Option<Duration>,
    ) -> Option<(Duration, Duration)> {
        let from = top.read("steady_from_s", self.problems, seconds);
        let to = top.read("steady_to_s", self.problems, seconds);
        let (place, from) = match from {
            Some(from) => (from.span(), from.into_inner()),
            None if to.is_none() => return None,
            None => (0..0, Duration::ZERO),
        };
        let end_place = to.as_ref().map(Spanned::span);
        let Some(end) = to.map(Spanned::into_inner).or(stop) else {
            self.say(
                place,
                "`steady_from_s` says where counting begins, but nothing where it ends",
            )
            .help("add `steady_to_s` or `stop_s`");
            return None;
        };
        if end <= from {
            let place = end_place.unwrap_or(place);
            self.say(place, "the steady state ends before it begins");
        }
        Some((from, end))
    }

    fn costs(&mut self, top: &mut Fields<'_, '_>) -> Costs {
        let defaults = Costs::default();
        let Some(mut fields) = top.section("costs", self.problems) else { return defaults };
        let message = fields.read("message_us", self.problems, microseconds);
        let spread = fields.read("message_spread", self.problems, |v| number(v, 0.0, 10.0, ""));
        let death = fields.read("death_ms", self.problems, milliseconds);
        let settle = fields.read("settle_ms", self.problems, milliseconds);
        let network = fields.read("network_us", self.problems, microseconds);
        let network_spread =
            fields.read("network_spread", self.problems, |v| number(v, 0.0, 10.0, ""));
        let loss = fields.read("network_loss", self.problems, |v| number(v, 0.0, 0.5, ""));
        let detect = fields.read("detect_ms", self.problems, milliseconds);
        fields.finish(self.problems);
        let message = Lengths::constant(or(message, defaults.message.mean));
        let network = Lengths::constant(or(network, defaults.network.mean));
        Costs {
            message: Lengths { spread: or(spread, 0.0), ..message },
            network: Lengths { spread: or(network_spread, 0.0), ..network },
            network_loss: or(loss, 0.0),
            detect: or(detect, defaults.detect),
            death: or(death, defaults.death),
            settle: or(settle, defaults.settle),
        }
    }

    /// Notes a problem; what is known besides can be added to it.
    fn say(&mut self, place: Range<usize>, message: impl Into<String>) -> Noted<'_> {
        self.problems.push(Problem::new(place, message));
        Noted(self.problems.last_mut().expect("it was just pushed"))
    }
}

/// A problem that was noted.
struct Noted<'p>(&'p mut Problem);

impl Noted<'_> {
    fn help(self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    fn related(self, place: Range<usize>, label: impl Into<String>) -> Self {
        self.0.related = Some((place, label.into()));
        self
    }
}

/// A node, and where the file says it.
struct PlacedNode {
    node: Node,
    place: Range<usize>,
}

fn or<T>(value: Option<Spanned<T>>, default: T) -> T {
    value.map_or(default, Spanned::into_inner)
}

fn seconds(value: &DeValue<'_>) -> Result<Duration, Fault> {
    number(value, 0.0, LONGEST_S, "seconds").map(Duration::from_secs_f64)
}

fn milliseconds(value: &DeValue<'_>) -> Result<Duration, Fault> {
    number(value, 0.0, LONGEST_S * 1e3, "milliseconds").map(|ms| Duration::from_secs_f64(ms / 1e3))
}

fn microseconds(value: &DeValue<'_>) -> Result<Duration, Fault> {
    number(value, 0.0, 1e12, "microseconds").map(|us| Duration::from_secs_f64(us / 1e6))
}

/// GiB as bytes.
fn gibibytes(value: &DeValue<'_>) -> Result<u64, Fault> {
    number(value, 0.0, 1e6, "GiB").map(|gib| (gib * (1u64 << 30) as f64) as u64)
}
