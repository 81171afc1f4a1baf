//! A measurement in a process of its own, so that what this one has done before is not in its memory.
//!
//! Owns: the way there and back: this program once more, with [`FLAG`], and figures as JSON on its standard output.
//! Does not own: what is measured.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::measure::Effort;

/// The option of this program with the name of a figure whose measurement it is to make, and nothing else.
pub const FLAG: &str = "--apart";

/// A figure on its way.
#[derive(Serialize, Deserialize)]
struct Told {
    name: String,
    value: f64,
    unit: String,
    how: String,
}

/// Has another process of this program measure the figures `names`.
///
/// # Errors
/// The process cannot be started or fails; it has said why.
pub fn measure(names: &[&'static str], effort: Effort) -> Result<Vec<Figure>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut command = Command::new(program);
    command.args([FLAG, names[0]]).args((effort == Effort::Quick).then_some("--quick"));
    let output = command.stderr(Stdio::inherit()).output().context("start this program again")?;
    ensure!(output.status.success(), "a process of its own: {}", output.status);
    let told: Vec<Told> = serde_json::from_slice(&output.stdout).context("its figures")?;
    let known = |told: Told| {
        let name = names.iter().find(|name| **name == told.name);
        let name = name.with_context(|| format!("it measured {}", told.name))?;
        let unit = Box::leak(told.unit.into_boxed_str()); // a few bytes, once
        Ok(Figure { name, value: told.value, unit, how: told.how })
    };
    told.into_iter().map(known).collect()
}

/// Tells the process that asked.
///
/// # Errors
/// Standard output cannot be written.
pub fn tell(figures: Vec<Figure>) -> Result<()> {
    let told = figures.into_iter().map(|figure| Told {
        name: figure.name.into(),
        value: figure.value,
        unit: figure.unit.into(),
        how: figure.how,
    });
    serde_json::to_writer(std::io::stdout(), &told.collect::<Vec<_>>())?;
    Ok(())
}
