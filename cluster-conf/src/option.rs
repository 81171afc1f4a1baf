//! The value of `--acb[=POLICY[,key=value…]]`.
//!
//! Owns its grammar and how it is settled with the cluster file. Does not own Slurm's side of the option, which is
//! the plugin's. A new key is a field of [`Request`] and a line of [`KEYS`].

#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroU32;

use crate::diagnostics::nearest;
use crate::gang::GangRequest;
use crate::policy::{OnFailure, Policy};
use crate::site::SiteConfig;
use crate::size::{ByteSize, SIZE_GRAMMAR};
use crate::tenancy::{Name, Priority, QueueRule, TenantRule};

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcbOption {
    /// `off`: this step runs as if there were no slurm-acb.
    Off,
    /// Anything else, even nothing: what is not said is the cluster file's.
    On(Request),
}

/// What the user said; `None` leaves it to the cluster file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The scheduling policy.
    pub policy: Option<Policy>,
    /// GPUs that each client sees.
    pub gpus: Option<NonZeroU32>,
    /// The quantum in milliseconds.
    pub quantum_ms: Option<NonZeroU32>,
    /// What clients do without an assigner.
    pub on_failure: Option<OnFailure>,
    /// Device memory that each client may have on each of its GPUs.
    pub memory: Option<ByteSize>,
    /// Whether programs that open the driver by a path are led to the interposer.
    pub audit: Option<bool>,
    /// Which of the clients in a queue go first.
    pub priority: Option<Priority>,
    /// The queue in which they wait.
    pub queue: Option<Name>,
    /// Whose quota and share they count for.
    pub tenant: Option<Name>,
    /// Which of them hold their GPUs at the same time.
    pub gang: Option<GangRequest>,
}

/// Longest quantum: a day.
pub(crate) const MAX_QUANTUM_MS: u32 = 86_400_000;

/// Most GPUs of one node that anybody has built.
const MAX_GPUS: u32 = 64;

/// One key of the option.
struct OptionKey {
    name: &'static str,
    allowed: &'static str,
    read: fn(&str, &mut Request) -> Option<()>,
    show: fn(&Request) -> Option<String>,
}

/// Every key. A policy stands before them, without a key.
const KEYS: &[OptionKey] = &[
    OptionKey {
        name: "gpus",
        allowed: "a whole number from 1 to 64",
        read: |text, request| number(text, MAX_GPUS).map(|n| request.gpus = Some(n)),
        show: |request| request.gpus.map(|n| n.to_string()),
    },
    OptionKey {
        name: "quantum",
        allowed: "a time like 500ms, 2s or 1m, or plain seconds, from 1 ms to a day",
        read: |text, request| duration_ms(text).map(|ms| request.quantum_ms = Some(ms)),
        show: |request| request.quantum_ms.map(show_ms),
    },
    OptionKey {
        name: "on_failure",
        allowed: "open or fail",
        read: |text, request| text.parse().ok().map(|choice| request.on_failure = Some(choice)),
        show: |request| request.on_failure.map(|choice| choice.to_string()),
    },
    OptionKey {
        name: "mem",
        allowed: SIZE_GRAMMAR,
        read: |text, request| text.parse().ok().map(|size| request.memory = Some(size)),
        show: |request| request.memory.map(|size| size.to_string()),
    },
    OptionKey {
        name: "audit",
        allowed: "on or off",
        read: |text, request| on_or_off(text).map(|audit| request.audit = Some(audit)),
        show: |request| request.audit.map(|audit| if audit { "on" } else { "off" }.to_owned()),
    },
    OptionKey {
        name: "prio",
        allowed: "a number from -100 to 100, or latency, interactive, normal or batch",
        read: |text, request| text.parse().ok().map(|priority| request.priority = Some(priority)),
        show: |request| request.priority.map(|priority| priority.to_string()),
    },
    OptionKey {
        name: "queue",
        allowed: "the name of a [[queue]] of the cluster file",
        read: |text, request| Name::new(text).ok().map(|name| request.queue = Some(name)),
        show: |request| request.queue.as_ref().map(Name::to_string),
    },
    OptionKey {
        name: "tenant",
        allowed: "the name of a [[tenant]] of the cluster file; any name, if it has none",
        read: |text, request| Name::new(text).ok().map(|name| request.tenant = Some(name)),
        show: |request| request.tenant.as_ref().map(Name::to_string),
    },
    OptionKey {
        name: "gang",
        allowed: "step (all tasks of a step), or NAME:SIZE",
        read: |text, request| text.parse().ok().map(|gang| request.gang = Some(gang)),
        show: |request| request.gang.as_ref().map(GangRequest::to_string),
    },
];

/// A key of the option, for help texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHelp {
    /// The key.
    pub name: &'static str,
    /// What may stand behind `=`.
    pub allowed: &'static str,
}

/// A value of the option that cannot be used, with all that is wrong. Its `Display` is a line for each problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    value: String,
    problems: Vec<OptionProblem>,
}

/// One thing that is wrong with a value of the option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionProblem {
    /// Character of the value, from 1, where it stands.
    pub at: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl AcbOption {
    /// Reads the value. Slurm hands a missing one over as `(null)`; it counts as empty.
    pub fn parse(value: &str) -> Result<Self, OptionError> {
        let text = if value == "(null)" { "" } else { value };
        let mut reader = Reader { value: text, request: Request::default(), problems: Vec::new() };
        let mut off = None;
        if !text.is_empty() {
            let mut at = 0;
            for (index, item) in text.split(',').enumerate() {
                if item == "off" && index == 0 {
                    off = Some(at);
                } else {
                    reader.item(index, at, item);
                }
                at += item.len() + 1;
            }
            if off.is_some() && text != "off" {
                reader.problem(0, "`off` stands alone: nothing can follow it".to_owned());
            }
        }
        match (reader.problems.is_empty(), off) {
            (true, Some(_)) => Ok(AcbOption::Off),
            (true, None) => Ok(AcbOption::On(reader.request)),
            (false, _) => Err(OptionError { value: text.to_owned(), problems: reader.problems }),
        }
    }

    /// Every key that a value may have.
    pub fn keys() -> impl Iterator<Item = KeyHelp> {
        KEYS.iter().map(|key| KeyHelp { name: key.name, allowed: key.allowed })
    }
}

struct Reader<'a> {
    value: &'a str,
    request: Request,
    problems: Vec<OptionProblem>,
}

impl Reader<'_> {
    fn item(&mut self, index: usize, at: usize, item: &str) {
        if let Some(hash) = item.find('#') {
            // Slurm cuts the value there on its way to the nodes.
            self.problem(at + hash, "`#` cannot stand in the value".to_owned());
        } else if item.is_empty() {
            self.problem(at, "nothing stands between the commas".to_owned());
        } else if let Some((name, text)) = item.split_once('=') {
            self.key(at, name, text);
        } else if let Some(key) = KEYS.iter().find(|key| key.name == item) {
            self.problem(at, format!("`{item}` needs a value, {item}=…: {}", key.allowed));
        } else if index == 0 {
            self.policy(at, item);
        } else if item.parse::<Policy>().is_ok() || item == "off" {
            self.problem(at, format!("`{item}` must stand first"));
        } else {
            self.unknown_key(at, item);
        }
    }

    fn policy(&mut self, at: usize, item: &str) {
        match item.parse() {
            Ok(policy) => self.request.policy = Some(policy),
            Err(_) => {
                let names = || Policy::ALL.map(Policy::name).into_iter().chain(["off"]);
                let meant = nearest(item, names().chain(KEYS.iter().map(|key| key.name)));
                self.problem(
                    at,
                    format!(
                        "`{}` is not a policy{}; allowed are {}, or keys ({})",
                        item.escape_debug(),
                        did_you_mean(meant),
                        names().collect::<Vec<_>>().join(", "),
                        key_names(),
                    ),
                );
            }
        }
    }

    fn key(&mut self, at: usize, name: &str, text: &str) {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return self.unknown_key(at, name);
        };
        if (key.show)(&self.request).is_some() {
            return self.problem(at, format!("`{name}` is given twice"));
        }
        if (key.read)(text, &mut self.request).is_none() {
            let at_value = at + name.len() + 1;
            self.problem(
                at_value,
                format!(
                    "`{}` cannot be the value of `{name}`: allowed is {}",
                    text.escape_debug(),
                    key.allowed
                ),
            );
        }
    }

    fn unknown_key(&mut self, at: usize, name: &str) {
        let meant = nearest(name, KEYS.iter().map(|key| key.name));
        self.problem(
            at,
            format!(
                "unknown key `{}`{}; known are {}",
                name.escape_debug(),
                did_you_mean(meant),
                key_names()
            ),
        );
    }

    fn problem(&mut self, at: usize, message: String) {
        let at = self.value[..at].chars().count() + 1;
        self.problems.push(OptionProblem { at, message });
    }
}

fn did_you_mean(meant: Option<&str>) -> String {
    meant.map(|word| format!(" (did you mean `{word}`?)")).unwrap_or_default()
}

fn key_names() -> String {
    KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}

fn number(text: &str, high: u32) -> Option<NonZeroU32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number: NonZeroU32 = digits.then(|| text.parse().ok()).flatten()?;
    (number.get() <= high).then_some(number)
}

fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Milliseconds of `500ms`, `2s`, `1.5s`, `1m`, or plain seconds.
fn duration_ms(text: &str) -> Option<NonZeroU32> {
    let (amount, unit_ms) = if let Some(amount) = text.strip_suffix("ms") {
        (amount, 1)
    } else if let Some(amount) = text.strip_suffix('s') {
        (amount, 1000)
    } else if let Some(amount) = text.strip_suffix('m') {
        (amount, 60_000)
    } else {
        (text, 1000)
    };
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
    let digits = |part: &str| {
        !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit())
    };
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = whole.parse::<u64>().ok()? * scale + fraction.parse::<u64>().ok()?;
    let ms = scaled.checked_mul(unit_ms)?;
    // What is finer than a millisecond is refused, not rounded away.
    if ms % scale != 0 || ms / scale > u64::from(MAX_QUANTUM_MS) {
        return None;
    }
    NonZeroU32::new(u32::try_from(ms / scale).ok()?)
}

fn show_ms(ms: NonZeroU32) -> String {
    match ms.get() {
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// The canonical form; reading it gives the same value again.
impl fmt::Display for AcbOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcbOption::Off => f.write_str("off"),
            AcbOption::On(request) => {
                let policy = request.policy.map(|policy| policy.to_string());
                let keys = KEYS.iter().filter_map(|key| {
                    (key.show)(request).map(|value| format!("{}={value}", key.name))
                });
                f.write_str(&policy.into_iter().chain(keys).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl OptionError {
    /// The problems in the order of the value.
    pub fn problems(&self) -> &[OptionProblem] {
        &self.problems
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let value = self.value.escape_debug();
            write!(f, "--acb={value}: at character {}: {}", problem.at, problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for OptionError {}

/// The option and the cluster file together: what holds for the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The scheduling policy.
    pub policy: Policy,
    /// GPUs that each client sees, if the user said so.
    pub gpus: Option<NonZeroU32>,
    /// The quantum in milliseconds.
    pub quantum_ms: NonZeroU32,
    /// What clients do without an assigner.
    pub on_failure: OnFailure,
    /// Device memory that each client may have on each of its GPUs, if the user said so.
    pub memory: Option<ByteSize>,
    /// Whether programs that open the driver by a path are led to the interposer.
    pub audit: bool,
    /// Which of the clients in a queue go first.
    pub priority: Priority,
    /// The queue in which they wait, if the user said so.
    pub queue: Option<Name>,
    /// Whose quota and share they count for, if the user said so.
    pub tenant: Option<Name>,
    /// Which of them hold their GPUs at the same time.
    pub gang: Option<GangRequest>,
}

/// Option and cluster file cannot both be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Policies that give one GPU to each client.
    #[error("--acb: gpus={gpus} is not possible with policy {policy}{}, which gives one GPU to each client; use --acb=gpu-affinity,gpus={gpus}",
        if *.from_site { " of the cluster file" } else { "" })]
    PolicyGivesOne {
        /// What the user wants.
        gpus: NonZeroU32,
        /// The policy.
        policy: Policy,
        /// Whether the policy is the cluster file's and not the user's own.
        from_site: bool,
    },
    /// The cluster file has no such queue.
    #[error("--acb: there is no queue `{queue}` in the cluster file; there {known}")]
    UnknownQueue {
        /// What the user named.
        queue: Name,
        /// What there is, as the end of a sentence.
        known: String,
    },
    /// The cluster file lists tenants, but not this one.
    #[error("--acb: there is no tenant `{tenant}` in the cluster file; there {known}")]
    UnknownTenant {
        /// What the user named.
        tenant: Name,
        /// What there is, as the end of a sentence.
        known: String,
    },
    /// More GPUs than a limit of the cluster file ever lets a client hold.
    #[error("--acb: gpus={gpus}, but {kind} `{name}` of the cluster file holds {most} at most")]
    BeyondLimit {
        /// What the user wants.
        gpus: NonZeroU32,
        /// "queue" or "tenant".
        kind: &'static str,
        /// Its name.
        name: Name,
        /// Its limit.
        most: NonZeroU32,
    },
}

/// The queue that a user names; it and the tenant that the user names are there, and let a client hold what it wants.
pub(crate) fn named<'s>(
    queues: &'s [QueueRule],
    tenants: &[TenantRule],
    request: &Request,
) -> Result<Option<&'s QueueRule>, Conflict> {
    let queue = request.queue.as_ref().map(|name| {
        let found = queues.iter().find(|queue| queue.name == *name);
        let known = || known(queues.iter().map(|queue| &queue.name));
        found.ok_or_else(|| Conflict::UnknownQueue { queue: name.clone(), known: known() })
    });
    let queue = queue.transpose()?;
    let tenant = request.tenant.as_ref().filter(|_| !tenants.is_empty()).map(|name| {
        let found = tenants.iter().find(|tenant| tenant.name == *name);
        let known = || known(tenants.iter().map(|tenant| &tenant.name));
        found.ok_or_else(|| Conflict::UnknownTenant { tenant: name.clone(), known: known() })
    });
    let tenant = tenant.transpose()?;
    let limits = [
        queue.and_then(|queue| Some(("queue", &queue.name, queue.max_gpus?))),
        tenant.and_then(|tenant| Some(("tenant", &tenant.name, tenant.max_gpus?))),
    ];
    for (kind, name, most) in limits.into_iter().flatten() {
        if let Some(gpus) = request.gpus.filter(|gpus| *gpus > most) {
            return Err(Conflict::BeyondLimit { gpus, kind, name: name.clone(), most });
        }
    }
    Ok(queue)
}

/// The end of a sentence that says what names there are.
fn known<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let names: Vec<&str> = names.map(Name::as_str).collect();
    if names.is_empty() { "is none".to_owned() } else { format!("are {}", names.join(", ")) }
}

impl Settings {
    /// What holds when the user asked for `request`.
    pub fn settle(site: &SiteConfig, request: &Request) -> Result<Self, Conflict> {
        let queue = named(&site.queues, &site.tenants, request)?;
        let policy = request.policy.unwrap_or(site.scheduler.policy);
        let of_queue = queue.and_then(|queue| queue.policy);
        if let Some(gpus) = request.gpus
            && gpus.get() > 1
            && !of_queue.unwrap_or(policy).gives_several_gpus()
        {
            return Err(Conflict::PolicyGivesOne {
                gpus,
                policy: of_queue.unwrap_or(policy),
                from_site: of_queue.is_some() || request.policy.is_none(),
            });
        }
        Ok(Settings {
            policy,
            gpus: request.gpus,
            quantum_ms: request.quantum_ms.unwrap_or(site.scheduler.quantum_ms),
            on_failure: request.on_failure.unwrap_or(site.failure.on_failure),
            memory: request.memory,
            audit: request.audit.unwrap_or(false),
            priority: request.priority.unwrap_or_default(),
            queue: request.queue.clone(),
            tenant: request.tenant.clone(),
            gang: request.gang.clone(),
        })
    }
}
