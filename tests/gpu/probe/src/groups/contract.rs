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
    let ending = child::run(&mut Command::new(program), limit, |line| lines.push(line.to_owned()))?;
    let verdicts = Verdicts::read(&lines);
    let failed = verdicts.failed.len();
    if verdicts.passed + failed == 0 {
        for name in ["contract_passed", "contract_failed"] {
            bench.missing(name, "count", format!("the program reported no test: {}", ending.why()));
        }
        return Ok(());
    }
    let note = if ending.is_success() { String::new() } else { ending.why() };
    bench.row(
        Row::value(bench.group, "contract_passed", "count", verdicts.passed as f64).note(note),
    );
    bench.row(
        Row::value(bench.group, "contract_failed", "count", failed as f64)
            .verified(failed == 0 && ending.is_success())
            .note(verdicts.failed.join(" ")),
    );
    bench.detail(serde_json::json!({ "output": lines }));
    Ok(())
}

/// What the tests' output says, in the form of Rust's test programs or of TAP.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdicts {
    passed: usize,
    failed: Vec<String>,
}

impl Verdicts {
    fn read(lines: &[String]) -> Self {
        let mut verdicts = Self::default();
        for line in lines {
            let line = line.trim();
            if let Some(name) = line.strip_prefix("not ok ") {
                verdicts.failed.push(name.into());
            } else if line.starts_with("ok ") || line.starts_with("test ") && line.ends_with(" ok")
            {
                verdicts.passed += 1;
            } else if let Some(test) = line.strip_prefix("test ")
                && let Some((name, _)) = test.split_once(" ... FAILED")
            {
                verdicts.failed.push(name.into());
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let text = "test a::b ... ok\ntest c ... FAILED\nok 1 - d\nnot ok 2 - e\nnoise\ntest result: ok. 1";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let failed = vec!["c".to_owned(), "2 - e".to_owned()];
        assert_eq!(Verdicts::read(&lines), Verdicts { passed: 2, failed });
    }
}
