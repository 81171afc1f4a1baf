//! What the terminal can show, and progress on it.
//!
//! Owns: [`Look`] from the environment, and a progress display that is a bar on a terminal and plain
//! lines elsewhere. Does not own: what is drawn.

use std::ffi::OsString;
use std::io::{IsTerminal, stderr, stdout};
use std::time::{Duration, Instant};

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};

use super::timeline::Look;

/// Columns of a picture that goes into a file.
const FILE_WIDTH: usize = 100;

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

impl Look {
    /// How to draw on stdout.
    pub fn of_stdout(color: ColorChoice, ascii: bool) -> Self {
        let terminal = stdout().is_terminal();
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let color = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                terminal
                    && set("NO_COLOR").is_none()
                    && set("TERM").is_none_or(|term| term != "dumb")
            }
        };
        let columns = set("COLUMNS").and_then(|text| text.to_str()?.parse().ok());
        let width = columns
            .or_else(|| Table::new().width().filter(|_| terminal).map(usize::from))
            .unwrap_or(FILE_WIDTH);
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        Self { width, color, unicode: !ascii && speaks_unicode(locale) }
    }
}

/// Unless the locale says otherwise, text is UTF-8.
fn speaks_unicode(locale: Option<OsString>) -> bool {
    let Some(locale) = locale else { return true };
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_utf8_unless_the_locale_says_otherwise() {
        assert!(speaks_unicode(None));
        assert!(speaks_unicode(Some("en_US.UTF-8".into())));
        assert!(speaks_unicode(Some("C.utf8".into())));
        assert!(!speaks_unicode(Some("C".into())));
        assert!(!speaks_unicode(Some("de_DE.ISO-8859-1".into())));
    }
}
