//! Scenarios that make no sense, `bad/*.toml`, are refused when they are read: every problem with its place, as in the
//! file beside it. With `ACB_UPDATE_SCENARIOS=1` those files are written anew; look at the difference.

use std::path::Path;

use acb_cluster_conf::Style;
use acb_sim::read::Overrides;
use anyhow::{Context, Result};

#[test]
fn bad_scenarios_are_refused_with_place_and_reason() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder)? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        seen += 1;
        let name = file.file_name().context("a file has a name")?.to_string_lossy();
        let text = std::fs::read_to_string(&file)?;
        let error = acb_sim::read(&name, &text, Overrides::default())
            .err()
            .with_context(|| format!("{name} was accepted"))?;
        let report = error.render(Style::Plain) + "\n";
        let expected = file.with_extension("txt");
        if std::env::var_os("ACB_UPDATE_SCENARIOS").is_some() {
            std::fs::write(&expected, &report)?;
        }
        assert_eq!(report, std::fs::read_to_string(&expected)?, "{name}");
        let places = error.problems().filter(|problem| problem.line > 0).count();
        assert_eq!(places, error.problems().count(), "{name}: every problem has its place");
    }
    assert!(seen >= 5, "the scenarios are in {}", folder.display());
    Ok(())
}
