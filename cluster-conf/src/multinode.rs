//! ACB's `$HOME/.acb/multinode.toml`: one table for each host.
//!
//! Owns its keys and rules. ACB demands the executors first and the controller last; here any order is right.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{ConfigError, Problem};
use crate::fields::{Fault, Fields, choice, document, integer, kind, string};
use crate::values::is_host_name;

/// What a host's assigner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders what spans nodes; there is exactly one.
    Controller,
    /// Owns the GPUs of its own node.
    Executor,
}

impl Role {
    const ALL: [Role; 2] = [Role::Controller, Role::Executor];

    /// The name, as it is written in the file.
    pub fn name(self) -> &'static str {
        match self {
            Role::Controller => "controller",
            Role::Executor => "executor",
        }
    }
}

/// One host of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The host's name.
    pub name: String,
    /// What its assigner is.
    pub role: Role,
    /// Where it listens: an IP address, or a name that resolves to one.
    pub address: String,
    /// The port there.
    pub port: u16,
    /// Its log, if the file says so.
    pub log_file: Option<PathBuf>,
    /// Its pid file, if the file says so.
    pub pid_file: Option<PathBuf>,
}

/// The hosts of a multi-node assigner: one controller, any number of executors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multinode {
    controller: Host,
    executors: Vec<Host>,
}

impl Multinode {
    /// Reads the text; `name` stands in the messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        read(text).map_err(|problems| ConfigError::new(name, text, problems))
    }

    /// The one controller.
    pub fn controller(&self) -> &Host {
        &self.controller
    }

    /// The executors, sorted by name.
    pub fn executors(&self) -> &[Host] {
        &self.executors
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        std::iter::once(&self.controller).chain(&self.executors).find(|host| host.name == name)
    }
}

/// The keys of a host.
const KEYS: [&str; 5] = ["type", "ipaddr", "port", "logfile", "pidfile"];

/// Tables in tables beyond this depth are no host names.
const MAX_DOTS: usize = 32;

fn read(text: &str) -> Result<Multinode, Vec<Problem>> {
    let document = document(text)?;
    let mut problems = Vec::new();
    let mut reader = Reader { text, problems: &mut problems, hosts: Vec::new() };
    for (key, value) in document.get_ref().iter() {
        reader.entry(key.get_ref().to_string(), key.span(), value, 0);
    }
    let hosts = reader.hosts;
    distinct_places(&hosts, &mut problems);
    let controllers: Vec<_> =
        hosts.iter().filter(|found| found.role == Some(Role::Controller)).collect();
    match controllers.as_slice() {
        // A host whose `type` could not be read may be the controller.
        [] if hosts.iter().any(|found| found.role.is_none()) => {}
        [] => problems.push(
            Problem::new(0..0, "no host has type = \"controller\"")
                .help("exactly one host orders what spans nodes; the others are executors"),
        ),
        [_] => {}
        [first, others @ ..] => {
            for other in others {
                problems.push(
                    Problem::new(
                        other.span.clone(),
                        format!("`{}` is a second controller", other.name),
                    )
                    .related(first.span.clone(), "here is the first")
                    .help(
                        "exactly one host has type = \"controller\"; the others are \"executor\"",
                    ),
                );
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (mut controllers, executors): (Vec<_>, Vec<_>) = hosts
        .into_iter()
        .filter_map(|found| found.host)
        .partition(|host| host.role == Role::Controller);
    let controller = controllers.pop().expect("without a problem there is one controller");
    Ok(Multinode { controller, executors })
}

/// A table of the file; `host` only where all of it could be read.
struct Found {
    name: String,
    span: Range<usize>,
    role: Option<Role>,
    host: Option<Host>,
}

struct Reader<'p> {
    text: &'p str,
    problems: &'p mut Vec<Problem>,
    hosts: Vec<Found>,
}

impl Reader<'_> {
    fn entry(
        &mut self,
        name: String,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
        depth: usize,
    ) {
        let DeValue::Table(table) = value.get_ref() else {
            let message = format!("`{}` stands outside a host's table", name.escape_debug());
            self.problems.push(
                Problem::new(span, message)
                    .label(format!("this is {}", kind(value.get_ref())))
                    .help("a host is [NAME] on a line of its own, with its keys below"),
            );
            return;
        };
        // TOML reads [a.b] as a table in a table; here it can only be a host name with dots.
        let dotted = !table.is_empty()
            && depth < MAX_DOTS
            && table.iter().all(|(key, value)| {
                !KEYS.contains(&key.get_ref().as_ref())
                    && matches!(value.get_ref(), DeValue::Table(_))
            });
        if dotted {
            for (key, value) in table.iter() {
                self.entry(format!("{name}.{}", key.get_ref()), key.span(), value, depth + 1);
            }
        } else {
            self.host(name, span, table);
        }
    }

    fn host(&mut self, name: String, span: Range<usize>, table: &DeTable<'_>) {
        if !is_host_name(&name) && name.parse::<IpAddr>().is_err() {
            self.problems.push(Problem::new(
                span.clone(),
                format!("`{}` is not a host name", name.escape_debug()),
            ));
        }
        let mut fields = Fields::new(name.clone(), self.text, table);
        let before = self.problems.len();
        let role = fields.read("type", self.problems, |v| choice(v, &Role::ALL, Role::name));
        let address = fields.read("ipaddr", self.problems, address);
        let port = fields.read("port", self.problems, |v| integer::<u16>(v, 1, 65_535, ""));
        let log_file = fields.read("logfile", self.problems, path).map(Spanned::into_inner);
        let pid_file = fields.read("pidfile", self.problems, path).map(Spanned::into_inner);
        fields.finish(self.problems);
        let missing: Vec<_> =
            KEYS[..3].iter().copied().filter(|&key| !table.contains_key(key)).collect();
        if !missing.is_empty() {
            let keys = missing.join("`, `");
            self.problems.push(
                Problem::new(
                    span.clone(),
                    format!("host `{}` lacks `{keys}`", name.escape_debug()),
                )
                .help("each host needs type, ipaddr and port"),
            );
        }
        let role = role.map(Spanned::into_inner);
        let host = match (role, address, port) {
            (Some(role), Some(address), Some(port)) if self.problems.len() == before => {
                Some(Host {
                    name: name.clone(),
                    role,
                    address: address.into_inner(),
                    port: port.into_inner(),
                    log_file,
                    pid_file,
                })
            }
            _ => None,
        };
        self.hosts.push(Found { name, span, role, host });
    }
}

/// Two assigners cannot listen at one place.
fn distinct_places(hosts: &[Found], problems: &mut Vec<Problem>) {
    let mut seen: BTreeMap<(&str, u16), &Found> = BTreeMap::new();
    for found in hosts {
        let Some(host) = &found.host else { continue };
        if let Some(first) = seen.insert((&host.address, host.port), found) {
            problems.push(
                Problem::new(
                    found.span.clone(),
                    format!("`{}` and `{}` have the same address and port", first.name, found.name),
                )
                .related(first.span.clone(), "here first"),
            );
        }
    }
}

fn address(value: &DeValue<'_>) -> Result<String, Fault> {
    let text = string(value)?;
    if text.parse::<IpAddr>().is_ok() || is_host_name(&text) {
        Ok(text)
    } else {
        Err(Fault::new(format!("\"{}\" is not an IP address", text.escape_debug()))
            .help("the port is a key of its own: port = 11234"))
    }
}

fn path(value: &DeValue<'_>) -> Result<PathBuf, Fault> {
    let text = string(value)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Fault::new(format!("\"{}\" is not a path", text.escape_debug())));
    }
    Ok(PathBuf::from(text))
}
