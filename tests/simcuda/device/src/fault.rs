//! Scripted faults: which call fails, in which program, at which turn. Owns the
//! rules and their counters; what a fault looks like is the caller's.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// An allocation (any call that takes device memory) is out of memory.
    OutOfMemory,
    /// `cuMemCreate` is out of memory; the other allocations are not.
    CreateFails,
    /// A kernel fails while it runs, which breaks its context.
    LaunchFails,
    /// A launch is refused when it is handed in; its context stays sound.
    LaunchRefused,
    /// A kernel never ends.
    Endless,
    /// `cuMemMap` fails.
    MapFails,
    /// A copy fails while it runs, which breaks its context.
    CopyFails,
    /// A copy is refused when it is handed in; its context stays sound.
    CopyRefused,
    /// Pinning host memory fails.
    PinFails,
    /// `cuMemAddressReserve` fails.
    ReserveFails,
    /// `cuMemSetAccess` fails.
    AccessFails,
    /// `cuMemUnmap` fails: the memory stays mapped.
    UnmapFails,
    /// `cuMemRelease` fails: the handle stays.
    ReleaseFails,
    /// The pager's hash kernel finds the same hash for everything.
    HashLies,
}

/// Where a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the host to a GPU.
    In,
    /// From a GPU to the host.
    Out,
}

/// A call that may go wrong, as rules look at it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    /// The kernel that it launches.
    pub kernel: Option<&'a str>,
    /// Where it copies to; `None`: neither to nor from a GPU alone, or no copy.
    pub way: Option<Way>,
    /// Bytes that it moves.
    pub bytes: u64,
}

/// One `[[fault]]` table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Only in programs of this name (the last part of the executable's path).
    pub program: Option<String>,
    /// Only in processes whose environment holds this `NAME=VALUE`.
    pub env: Option<String>,
    /// Only for this kernel.
    pub kernel: Option<String>,
    /// Only for copies in this direction.
    pub way: Option<Way>,
    /// Only for copies of so many bytes or more.
    #[serde(default)]
    pub bytes: u64,
    /// The code with which the call ends, where the kind leaves a choice.
    pub error: Option<u32>,
    /// At the n-th matching call of a process, counted from 1.
    #[serde(default = "one")]
    pub at: u64,
    /// How many calls in a row; 0 means all that follow.
    #[serde(default = "one")]
    pub times: u64,
}

fn one() -> u64 {
    1
}

/// The rules that concern this process, with their counters.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Vec<(FaultRule, AtomicU64)>,
}

impl Faults {
    /// Keeps the rules that concern a process with this program name and
    /// environment.
    #[must_use]
    pub fn new(
        rules: &[FaultRule],
        program: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Faults {
        let concerns = |rule: &&FaultRule| {
            let program_fits = rule.program.as_deref().is_none_or(|name| name == program);
            let env_fits = rule.env.as_deref().is_none_or(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                variable(name).as_deref() == Some(value)
            });
            program_fits && env_fits
        };
        Faults {
            rules: rules
                .iter()
                .filter(concerns)
                .map(|rule| (rule.clone(), AtomicU64::new(0)))
                .collect(),
        }
    }

    /// The rules for the calling process.
    #[must_use]
    pub fn of_this_process(rules: &[FaultRule]) -> Faults {
        let program = std::env::current_exe().ok();
        let program = program.as_deref().and_then(|path| path.file_name());
        let program = program.map(|name| name.to_string_lossy().into_owned());
        Faults::new(rules, &program.unwrap_or_default(), |name| std::env::var(name).ok())
    }

    /// Counts one call of this kind; whether it goes wrong.
    pub fn strikes(&self, kind: FaultKind, kernel: Option<&str>) -> bool {
        self.strike(kind, Call { kernel, ..Call::default() }).is_some()
    }

    /// Counts one call of this kind; the rule by which it goes wrong.
    pub fn strike(&self, kind: FaultKind, call: Call<'_>) -> Option<&FaultRule> {
        let mut struck = None;
        for (rule, count) in &self.rules {
            let kernel_fits = rule.kernel.as_deref().is_none_or(|name| Some(name) == call.kernel);
            let way_fits = rule.way.is_none_or(|way| Some(way) == call.way);
            if rule.kind == kind && kernel_fits && way_fits && call.bytes >= rule.bytes {
                let turn = count.fetch_add(1, Ordering::Relaxed) + 1;
                if turn >= rule.at && (rule.times == 0 || turn < rule.at + rule.times) {
                    struck = Some(rule);
                }
            }
        }
        struck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> FaultRule {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn strikes_at_its_turn_and_only_there() {
        let rules = [rule("kind = 'out_of_memory'\nat = 2\ntimes = 2")];
        let faults = Faults::new(&rules, "p", |_| None);
        let struck: Vec<bool> =
            (0..5).map(|_| faults.strikes(FaultKind::OutOfMemory, None)).collect();
        assert_eq!(struck, [false, true, true, false, false]);
        assert!(!faults.strikes(FaultKind::CopyFails, None));
    }

    #[test]
    fn direction_and_size_narrow_it_and_an_error_can_be_chosen() {
        let rules = [rule("kind = 'copy_refused'\nway = 'out'\nbytes = 100\nerror = 46")];
        let faults = Faults::new(&rules, "p", |_| None);
        let call = |way, bytes| Call { way: Some(way), bytes, ..Call::default() };
        for small in [call(Way::In, 100), call(Way::Out, 99), Call::default()] {
            assert_eq!(faults.strike(FaultKind::CopyRefused, small), None);
        }
        let struck = faults.strike(FaultKind::CopyRefused, call(Way::Out, 100));
        assert_eq!(struck.and_then(|rule| rule.error), Some(46));
        assert_eq!(faults.strike(FaultKind::CopyRefused, call(Way::Out, 100)), None);
    }

    #[test]
    fn program_environment_and_kernel_narrow_it() {
        let rules = [
            rule("kind = 'launch_fails'\nprogram = 'q'"),
            rule("kind = 'launch_fails'\nenv = 'RANK=3'\nkernel = 'k'\ntimes = 0"),
        ];
        let faults = Faults::new(&rules, "p", |_| Some("3".to_owned()));
        assert!(!faults.strikes(FaultKind::LaunchFails, Some("other")));
        assert!(faults.strikes(FaultKind::LaunchFails, Some("k")));
        let faults = Faults::new(&rules, "p", |_| None);
        assert!(!faults.strikes(FaultKind::LaunchFails, Some("k")));
    }
}
