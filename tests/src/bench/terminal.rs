//! What the terminal can show, and progress on it.
//!
//! Owns: [`Look`] from the environment, and a progress display that is a bar on a terminal and plain
//! lines elsewhere. Does not own: what is drawn.

use std::io::{IsTerminal, stderr, stdout};
use std::time::{Duration, Instant};

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};

use super::timeline::Look;

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to draw on stdout.
pub fn look_of_stdout(color: ColorChoice, ascii: bool) -> Look {
    let color = match color {
        ColorChoice::Always => Some(true),
        ColorChoice::Never => Some(false),
        ColorChoice::Auto => None,
    };
    let width = || Table::new().width().unwrap_or(100);
    let terminal = stdout().is_terminal().then(width);
    Look::of(color, ascii, terminal, |name| std::env::var_os(name))
}

/// How far something is: a bar on a terminal, now and then a line elsewhere.
pub struct Progress {
    bar: ProgressBar,
    plain: Option<Plain>,
    name: String,
    total: u64,
    done: u64,
}

struct Plain {
    begin: Instant,
    said: Instant,
}

/// Time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    /// Begins to show `total` steps of something.
    pub fn start(name: &str, total: u64, look: Look) -> Self {
        let plain = (!stderr().is_terminal())
            .then(|| Plain { begin: Instant::now(), said: Instant::now() });
        let bar = if plain.is_some() { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let (open, filled) =
            if look.color { ("{bar:40.cyan/238}", "━╸─") } else { ("{bar:40}", "━╸ ") };
        let filled = if look.unicode { filled } else { "##-" };
        let template = format!("  {open} {{pos:>3}} of {{len}} rounds, {{elapsed}}");
        let style = ProgressStyle::with_template(&template)
            .expect("the template is a literal of this function")
            .progress_chars(filled);
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, plain, name: name.to_owned(), total, done: 0 }
    }

    /// One step more.
    pub fn step(&mut self) {
        self.done += 1;
        self.bar.inc(1);
        if let Some(plain) = &mut self.plain
            && plain.said.elapsed() >= PLAIN_INTERVAL
        {
            plain.said = Instant::now();
            let seconds = plain.begin.elapsed().as_secs();
            eprintln!("{}: {} of {} rounds after {seconds} s", self.name, self.done, self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
