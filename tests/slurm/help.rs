//! `--help`: Slurm prints a plugin's options through buffers of fixed size.

use crate::stage;
use anyhow::{Result, ensure};

#[test]
fn help_shows_the_option_at_any_width() -> Result<()> {
    let Some(lab) = stage::own(|options| options.nodes = 1)? else { return Ok(()) };
    for program in ["srun", "sbatch", "salloc"] {
        for columns in ["40", "200"] {
            let mut command = lab.command(program);
            let output = command.arg("--help").env("COLUMNS", columns).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "{program} at {columns}: {}", output.status);
            ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            // The argument is whole, and so is what is said of it.
            ensure!(text.contains("--acb=POLICY,key=value,..."), "{program} at {columns}: {text}");
            let words: Vec<_> = text.split_whitespace().collect();
            ensure!(
                words.join(" ").contains("share the job's GPUs per GPU phase (off: not)"),
                "{program} at {columns}: {text}"
            );
        }
    }
    Ok(())
}
