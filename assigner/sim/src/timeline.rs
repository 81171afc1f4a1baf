//! The picture of a run in a terminal: per client CPU phase, waiting, GPU phase; below, the GPUs.
//!
//! Owns: turning phases into lines of text, with colours or without, in block characters or in plain
//! ASCII. Does not own: whether they were measured or simulated, where they are printed, and what the
//! terminal can do ([`Look`] is told).
//!
//! A cell of the terminal is two slots of time; each slot shows the state that took most of it.

use std::ffi::OsString;
use std::fmt::Write as _;

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// ANSI colours (256).
    pub color: bool,
    /// Block characters.
    pub unicode: bool,
}

impl Look {
    /// What can be shown on stdout. `color` overrules what is found; `terminal` is its width, if it is one; `variable` gives
    /// the environment.
    #[must_use]
    pub fn of(
        color: Option<bool>,
        ascii: bool,
        terminal: Option<u16>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Look {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let color = color.unwrap_or_else(|| {
            terminal.is_some()
                && set("NO_COLOR").is_none()
                && set("TERM").is_none_or(|term| term != "dumb")
        });
        let columns = set("COLUMNS").and_then(|text| text.to_str()?.parse().ok());
        let width = columns.or(terminal.map(usize::from)).unwrap_or(FILE_WIDTH);
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        Look { width, color, unicode: !ascii && speaks_unicode(locale) }
    }
}

/// Unless the locale says otherwise, text is UTF-8.
fn speaks_unicode(locale: Option<OsString>) -> bool {
    let Some(locale) = locale else { return true };
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// One run to draw. Times are nanoseconds from any origin.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it was, and what came out.
    pub title: String,
    /// The clients.
    pub clients: Vec<Lane>,
    /// The GPUs.
    pub gpus: Vec<GpuLane>,
    /// The stretch that was counted.
    pub counted: Option<(u64, u64)>,
}

/// Who had a GPU.
#[derive(Clone, Debug)]
pub struct GpuLane {
    /// Its name.
    pub name: String,
    /// From, to, which client by position.
    pub holders: Vec<(u64, u64, usize)>,
}

/// What a client did.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// From, to, what.
    pub phases: Vec<(u64, u64, State)>,
}

/// Columns of a picture that goes into a file.
const FILE_WIDTH: usize = 100;
/// Columns of the names.
const LABEL: usize = 10;
/// Narrower pictures show nothing.
const MIN_CELLS: usize = 20;
/// Colours of the clients, told apart on dark and on light ground.
const CLIENT_COLORS: [u8; 8] = [39, 208, 77, 205, 178, 135, 44, 203];
const CPU_COLOR: u8 = 244;
const WAIT_COLOR: u8 = 137;

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not there.
    Nothing,
    /// Computing without a GPU.
    Cpu,
    /// Waiting for a GPU, or for its memory there.
    Waiting,
    /// Computing on a GPU.
    Gpu,
}

/// The glyphs of a look.
struct Glyphs {
    cpu: char,
    waiting: char,
    gpu: char,
    /// GPU in the left half of the cell, in the right half.
    halves: (char, char),
    /// Begin, line and end of the steady state.
    span: (char, char, char),
}

const BLOCKS: Glyphs =
    Glyphs {
        cpu: '─', waiting: '░', gpu: '█', halves: ('▌', '▐'), span: ('├', '─', '┤')
    };
const ASCII: Glyphs =
    Glyphs { cpu: '-', waiting: '.', gpu: '#', halves: ('#', '#'), span: ('|', '-', '|') };

/// Draws the runs below each other, on one scale of time.
#[must_use]
pub fn draw(runs: &[Run], look: Look) -> Vec<String> {
    let picture = Picture::new(runs, look);
    let mut lines = vec![];
    for run in runs {
        lines.push(picture.bold(&run.title));
        lines.extend(picture.run(run));
        lines.push(String::new());
    }
    lines.push(picture.axis());
    if let Some(cut) = &picture.cut {
        lines.push(cut.clone());
    }
    lines.extend(picture.legend());
    lines
}

/// The scale and the look of all rows.
struct Picture {
    look: Look,
    glyphs: &'static Glyphs,
    cells: usize,
    slot_ns: f64,
    /// Said when the runs are longer than the picture.
    cut: Option<String>,
}

impl Picture {
    fn new(runs: &[Run], look: Look) -> Self {
        let cells = look.width.saturating_sub(LABEL + 1).max(MIN_CELLS);
        let longest = runs.iter().map(|run| span(run).1 - span(run).0).max().unwrap_or(1).max(1);
        // A GPU phase must cover two cells, or it could not be told from its neighbours.
        let lanes = runs.iter().flat_map(|run| &run.clients).flat_map(|lane| &lane.phases);
        let lengths = lanes.filter(|phase| phase.2 == State::Gpu).map(|(from, to, _)| to - from);
        let (sum, count) = lengths.fold((0, 0), |(sum, count), length| (sum + length, count + 1));
        let phase: u64 = sum / count.max(1);
        let shown = longest.min((phase * cells as u64 / 2).max(1));
        let seconds = |ns: u64| (ns as f64 / 1e9).round();
        let cut = (shown < longest).then(|| {
            format!("{:LABEL$}(the first {} s of {} s)", "", seconds(shown), seconds(longest))
        });
        let glyphs = if look.unicode { &BLOCKS } else { &ASCII };
        Self { look, glyphs, cells, slot_ns: shown as f64 / (cells * 2) as f64, cut }
    }

    /// The rows of one run: its clients, the GPUs, and the steady state.
    fn run(&self, run: &Run) -> Vec<String> {
        let origin = span(run).0;
        let mut lines = vec![];
        for (index, lane) in run.clients.iter().enumerate() {
            let slots = self.slots(&lane.phases, origin, State::Nothing);
            lines.push(format!("{:LABEL$.LABEL$}{}", lane.name, self.client_row(index, &slots)));
        }
        for GpuLane { name, holders } in &run.gpus {
            let holders: Vec<(u64, u64, Option<usize>)> =
                holders.iter().map(|(from, to, client)| (*from, *to, Some(*client))).collect();
            let slots = self.slots(&holders, origin, None);
            lines.push(format!("{name:LABEL$.LABEL$}{}", self.gpu_row(&slots)));
        }
        lines.extend(run.counted.and_then(|counted| self.steady_row(counted, origin)));
        lines
    }

    /// What took most of each slot.
    fn slots<T: Copy + PartialEq>(
        &self,
        phases: &[(u64, u64, T)],
        origin: u64,
        nothing: T,
    ) -> Vec<T> {
        let count = self.cells * 2;
        let mut slots = vec![(0.0, nothing); count];
        for (from, to, what) in phases {
            let (from, to) =
                ((from - origin) as f64 / self.slot_ns, (to - origin) as f64 / self.slot_ns);
            let first = from as usize;
            let last = (to as usize).min(count.saturating_sub(1));
            for (slot, best) in slots.iter_mut().enumerate().take(last + 1).skip(first) {
                let overlap = to.min((slot + 1) as f64) - from.max(slot as f64);
                if overlap > best.0 {
                    *best = (overlap, *what);
                }
            }
        }
        slots.into_iter().map(|(_, what)| what).collect()
    }

    fn client_row(&self, client: usize, slots: &[State]) -> String {
        let mut row = Row::new(self.look.color);
        for pair in slots.chunks_exact(2) {
            let (glyph, color) = match (pair[0], pair[1]) {
                (State::Gpu, State::Gpu) => (self.glyphs.gpu, client_color(client)),
                (State::Gpu, _) => (self.glyphs.halves.0, client_color(client)),
                (_, State::Gpu) => (self.glyphs.halves.1, client_color(client)),
                (State::Nothing, State::Nothing) => (' ', CPU_COLOR),
                (State::Waiting, _) => (self.glyphs.waiting, WAIT_COLOR),
                (_, State::Waiting) if pair[0] == State::Nothing => {
                    (self.glyphs.waiting, WAIT_COLOR)
                }
                _ => (self.glyphs.cpu, CPU_COLOR),
            };
            row.push(glyph, Paint::Front(color));
        }
        row.finish()
    }

    /// Who had the GPU: each phase begins with the client's number.
    fn gpu_row(&self, slots: &[Option<usize>]) -> String {
        let mut row = Row::new(self.look.color);
        let mut before = None;
        for pair in slots.chunks_exact(2) {
            let (glyph, paint) = match (pair[0], pair[1]) {
                (None, None) => (' ', Paint::Front(CPU_COLOR)),
                (Some(holder), None) => (self.glyphs.halves.0, Paint::Front(client_color(holder))),
                (None, Some(holder)) => (self.glyphs.halves.1, Paint::Front(client_color(holder))),
                (Some(left), Some(right)) if left != right && self.look.color => {
                    (self.glyphs.halves.0, Paint::Both(client_color(left), client_color(right)))
                }
                (Some(left), Some(right)) => {
                    // A phase's number stands where it first fills a cell.
                    if before == Some(right) || left != right {
                        (self.glyphs.gpu, Paint::Front(client_color(right)))
                    } else {
                        before = Some(right);
                        (digit(right), Paint::Both(16, client_color(right)))
                    }
                }
            };
            if pair[0] != pair[1] {
                before = None;
            }
            row.push(glyph, paint);
        }
        row.finish()
    }

    /// The stretch that was counted, where the picture is wide enough to show it.
    fn steady_row(&self, counted: (u64, u64), origin: u64) -> Option<String> {
        let cell = |at: u64| (at.saturating_sub(origin) as f64 / self.slot_ns / 2.0) as usize;
        let (begin, line, end) = self.glyphs.span;
        let (from, to, end) = match cell(counted.1) {
            to if to < self.cells => (cell(counted.0), to, end),
            _ => (cell(counted.0), self.cells - 1, line),
        };
        let text = " counted ";
        let inner = to.checked_sub(from + 1)?;
        let lines = inner.checked_sub(text.len())?;
        let left: String = std::iter::repeat_n(line, lines / 2).collect();
        let right: String = std::iter::repeat_n(line, lines - lines / 2).collect();
        let bar = format!("{}{begin}{left}{text}{right}{end}", " ".repeat(LABEL + from));
        Some(self.dim(&bar))
    }

    fn axis(&self) -> String {
        let cell_s = self.slot_ns * 2.0 / 1e9;
        // Steps of 1, 2 or 5 times a power of ten, far enough apart for their labels.
        let mut step = 0.1;
        for factor in [2.0, 2.5, 2.0].iter().cycle() {
            if step / cell_s >= 9.0 {
                break;
            }
            step *= factor;
        }
        let mut text = String::new();
        let mut tick = 0;
        loop {
            let seconds = f64::from(tick) * step;
            let at = (seconds / cell_s) as usize;
            let label =
                if step < 1.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") };
            if at + label.len() > self.cells {
                break;
            }
            let have = text.len();
            let _ = write!(text, "{:pad$}{label}", "", pad = at - have.min(at));
            tick += 1;
        }
        self.dim(&format!("{:LABEL$}{text}", ""))
    }

    fn legend(&self) -> Vec<String> {
        let entries = [
            (self.glyphs.cpu, CPU_COLOR, "CPU phase"),
            (self.glyphs.waiting, WAIT_COLOR, "waiting for the GPU"),
            (self.glyphs.gpu, CLIENT_COLORS[0], "GPU phase"),
        ];
        let mut rows = vec![Row::new(self.look.color)];
        let mut used = 0;
        for (glyph, color, text) in entries {
            let columns = 2 + 1 + text.len() + 4;
            if used + columns > self.cells && used > 0 {
                rows.push(Row::new(self.look.color));
                used = 0;
            }
            let row = rows.last_mut().expect("there is a row from the start");
            row.text(&" ".repeat(if used == 0 { LABEL } else { 4 }));
            row.push(glyph, Paint::Front(color));
            row.push(glyph, Paint::Front(color));
            row.text(" ");
            row.text(text);
            used += columns;
        }
        rows.into_iter().map(Row::finish).collect()
    }

    fn bold(&self, text: &str) -> String {
        if self.look.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn dim(&self, text: &str) -> String {
        if self.look.color {
            format!("\x1b[38;5;{CPU_COLOR}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// From the first phase to the end of the last one.
fn span(run: &Run) -> (u64, u64) {
    let phases = || run.clients.iter().flat_map(|lane| &lane.phases);
    let from = phases().map(|(from, ..)| *from).min().unwrap_or(0);
    let to = phases().map(|(_, to, _)| *to).max().unwrap_or(0);
    (from, to)
}

fn client_color(client: usize) -> u8 {
    CLIENT_COLORS[client % CLIENT_COLORS.len()]
}

fn digit(client: usize) -> char {
    char::from(b'0' + (client % 10) as u8)
}

/// Colours of a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    Front(u8),
    /// Front and ground.
    Both(u8, u8),
}

/// A line under construction; colours are written where they change.
struct Row {
    text: String,
    color: bool,
    paint: Option<Paint>,
}

impl Row {
    fn new(color: bool) -> Self {
        Self { text: String::new(), color, paint: None }
    }

    fn push(&mut self, glyph: char, paint: Paint) {
        if self.color && self.paint != Some(paint) {
            self.reset();
            let _ = match paint {
                Paint::Front(front) => write!(self.text, "\x1b[38;5;{front}m"),
                Paint::Both(front, ground) => {
                    write!(self.text, "\x1b[38;5;{front};48;5;{ground}m")
                }
            };
            self.paint = Some(paint);
        }
        self.text.push(glyph);
    }

    /// Text in the terminal's own colour.
    fn text(&mut self, text: &str) {
        self.reset();
        self.text.push_str(text);
    }

    fn reset(&mut self) {
        if self.paint.take().is_some() {
            self.text.push_str("\x1b[0m");
        }
    }

    fn finish(mut self) -> String {
        if self.color {
            self.reset();
            self.text
        } else {
            self.text.trim_end().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look { width: 100, color: false, unicode: true };

    #[test]
    fn a_slot_shows_what_took_most_of_it() {
        let picture = Picture { look: PLAIN, glyphs: &BLOCKS, cells: 2, slot_ns: 10.0, cut: None };
        let slots = picture.slots(&[(100, 114, 'a'), (114, 127, 'b'), (135, 140, 'c')], 100, ' ');
        assert_eq!(slots, ['a', 'b', 'b', 'c']);
    }

    #[test]
    fn text_is_utf8_unless_the_locale_says_otherwise() {
        assert!(speaks_unicode(None));
        assert!(speaks_unicode(Some("en_US.UTF-8".into())));
        assert!(speaks_unicode(Some("C.utf8".into())));
        assert!(!speaks_unicode(Some("C".into())));
        assert!(!speaks_unicode(Some("de_DE.ISO-8859-1".into())));
    }

    #[test]
    fn colours_switch_off() {
        let color = |given, terminal, name: &'static str, value: &'static str| {
            Look::of(given, false, terminal, |asked| (asked == name).then(|| value.into())).color
        };
        assert!(color(None, Some(80), "", ""));
        assert!(!color(None, None, "", ""));
        assert!(!color(None, Some(80), "NO_COLOR", "1"));
        assert!(!color(None, Some(80), "TERM", "dumb"));
        assert!(color(Some(true), None, "NO_COLOR", "1"));
        assert!(!color(Some(false), Some(80), "", ""));
    }
}
