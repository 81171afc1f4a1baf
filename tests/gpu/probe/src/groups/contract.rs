//! Group `contract`: the contract tests of the software GPU, run on this machine's driver: what one
//! promises, the other must keep.

use std::process::Command;
use std::time::Duration;

use crate::bench::Bench;
use crate::child;
use crate::row::Row;

const PROGRAM: &str = "libexec/acb-tests/contract";

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let Some(program) = bench.installed(PROGRAM) else {
        for name in ["contract_passed", "contract_failed"] {
            bench.missing(name, "count", format!("there is no {PROGRAM} under --prefix"));
        }
        return Ok(());
    };
    let mut lines = Vec::new();
    let limit = Duration::from_secs_f64((bench.seconds_left() - 3.0).max(1.0));
    // A case that hangs leaves time for the others.
    let each = (limit.as_secs() / 4).clamp(3, 15).to_string();
    let ending = child::run(Command::new(program).args(["--timeout", &each]), limit, |line| {
        lines.push(line.to_owned())
    })?;
    let verdicts = Verdicts::read(&lines);
    let failed: Vec<String> = verdicts
        .cases
        .iter()
        .filter_map(|(name, failure)| Some(format!("{name}: {}", failure.as_ref()?)))
        .collect();
    let passed = verdicts.cases.len() - failed.len();
    if verdicts.cases.is_empty() {
        for name in ["contract_passed", "contract_failed"] {
            bench.missing(name, "count", format!("the program reported no test: {}", ending.why()));
        }
        return Ok(());
    }
    let note = if ending.is_success() { String::new() } else { ending.why() };
    bench.row(Row::value(bench.group, "contract_passed", "count", passed as f64).note(note));
    bench.row(
        Row::value(bench.group, "contract_failed", "count", failed.len() as f64)
            .verified(failed.is_empty() && ending.is_success())
            .note(failed.join(" ")),
    );
    for (name, failure) in &verdicts.cases {
        let row = Row::text(
            bench.group,
            &format!("contract.case@{name}"),
            match failure {
                None => "ok",
                Some(_) => "FAILED",
            },
        );
        bench.row(row.verified(failure.is_none()).note(failure.clone().unwrap_or_default()));
    }
    bench.detail(serde_json::json!({ "output": lines }));
    Ok(())
}

/// What the program's table says: a line `NAME ok` or `NAME failed REASON` a case.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdicts {
    /// Name, and what was not as expected.
    cases: Vec<(String, Option<String>)>,
}

impl Verdicts {
    fn read(lines: &[String]) -> Self {
        let mut verdicts = Self::default();
        for line in lines {
            let mut words = line.split_whitespace();
            let (Some(name), Some(verdict)) = (words.next(), words.next()) else { continue };
            if !name.contains("::") {
                continue;
            }
            match verdict {
                "ok" => verdicts.cases.push((name.to_owned(), None)),
                "failed" => {
                    let reason: Vec<&str> = words.collect();
                    verdicts.cases.push((name.to_owned(), Some(reason.join(" "))));
                }
                _ => {}
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let text = " starting::init   ok \n order::events   failed   the second came first \n\n1 passed, 1 failed";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let cases = vec![
            ("starting::init".to_owned(), None),
            ("order::events".to_owned(), Some("the second came first".to_owned())),
        ];
        assert_eq!(Verdicts::read(&lines), Verdicts { cases });
    }
}
