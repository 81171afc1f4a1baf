//! The picture of a run as SVG.
//!
//! Owns: the drawing. Does not own: what is drawn ([`crate::timeline::Run`]), files.

use std::fmt::Write;

use crate::timeline::{Run, State};

const WIDTH: f64 = 1200.0;
const LABEL: f64 = 110.0;
const ROW: f64 = 18.0;
const TOP: f64 = 30.0;
/// Colours of the clients, told apart on white.
const COLORS: [&str; 8] =
    ["#d9822b", "#2b83ba", "#4daf4a", "#c2539b", "#b59f00", "#7b6fc4", "#1b9e9e", "#d1495b"];

/// Draws a run: a row for each client, then a row for each GPU.
#[must_use]
pub fn draw(run: &Run) -> String {
    let ends = run.clients.iter().flat_map(|lane| &lane.phases).map(|(_, to, _)| *to);
    let end = ends.max().unwrap_or(1).max(1) as f64;
    let x = |at: u64| LABEL + (WIDTH - LABEL - 10.0) * at as f64 / end;
    let rows = run.clients.len() + run.gpus.len();
    let bottom = TOP + ROW * rows as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<text x=\"4\" y=\"16\" font-size=\"13\">{}</text>\n",
        bottom + 24.0,
        escaped(&run.title),
    );
    let mut row = 0.0;
    let bar = |svg: &mut String, row: f64, from: u64, to: u64, thin: bool, color: &str| {
        let (height, inset) = if thin { (3.0, 7.0) } else { (ROW - 4.0, 2.0) };
        let (left, width) = (x(from), x(to) - x(from));
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.2}\" y=\"{:.1}\" width=\"{width:.2}\" height=\"{height}\" fill=\"{color}\"/>",
            TOP + row * ROW + inset,
        );
    };
    let label = |svg: &mut String, row: f64, name: &str| {
        let y = TOP + row * ROW + 13.0;
        let _ = writeln!(svg, "<text x=\"4\" y=\"{y:.1}\">{}</text>", escaped(name));
    };
    for (client, lane) in run.clients.iter().enumerate() {
        label(&mut svg, row, &lane.name);
        for (from, to, state) in &lane.phases {
            let (thin, color) = match state {
                State::Nothing => continue,
                State::Cpu => (true, "#999999"),
                State::Waiting => (true, "#e8c9a0"),
                State::Gpu => (false, COLORS[client % COLORS.len()]),
            };
            bar(&mut svg, row, *from, *to, thin, color);
        }
        row += 1.0;
    }
    for lane in &run.gpus {
        label(&mut svg, row, &lane.name);
        for (from, to, client) in &lane.holders {
            bar(&mut svg, row, *from, *to, false, COLORS[client % COLORS.len()]);
        }
        row += 1.0;
    }
    if let Some((from, to)) = run.counted {
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {bottom:.1}v6H{:.1}v-6\" fill=\"none\" stroke=\"#555\"/>",
            x(from),
            x(to)
        );
    }
    let _ = writeln!(svg, "<text x=\"{LABEL}\" y=\"{:.1}\">0 s</text>", bottom + 18.0);
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} s</text>\n</svg>",
        WIDTH - 10.0,
        bottom + 18.0,
        end / 1e9
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
