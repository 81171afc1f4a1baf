//! The picture of measured runs: what the program `phases` recorded, as lanes of a timeline.
//!
//! Owns: what of a record is drawn. Does not own: the drawing ([`acb_sim::timeline`]).

use std::collections::BTreeMap;

use acb_sim::timeline::{GpuLane, Lane, State};

pub use acb_sim::timeline::Look;

use super::analysis::Window;
use super::record::Round;

/// One run to draw.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// What it was, and what came out.
    pub title: String,
    /// Its record.
    pub rounds: &'a [Round],
    /// The stretch that was counted.
    pub steady: Window,
}

/// Draws the runs below each other, on one scale of time.
pub fn draw(runs: &[Run<'_>], look: Look) -> Vec<String> {
    let runs: Vec<acb_sim::timeline::Run> = runs.iter().map(lanes).collect();
    acb_sim::timeline::draw(&runs, look)
}

fn lanes(run: &Run<'_>) -> acb_sim::timeline::Run {
    let mut clients: BTreeMap<&str, Vec<&Round>> = BTreeMap::new();
    for round in run.rounds {
        clients.entry(&round.name).or_default().push(round);
    }
    let (mut lanes, mut holders) = (vec![], vec![]);
    for (index, (name, rounds)) in clients.into_iter().enumerate() {
        let mut phases = vec![];
        for round in rounds {
            phases.push((round.cpu_start_ns, round.gpu_wanted_ns, State::Cpu));
            phases.push((round.gpu_wanted_ns, round.gpu_got_ns, State::Waiting));
            phases.push((round.gpu_got_ns, round.gpu_done_ns, State::Gpu));
            holders.push((round.gpu_got_ns, round.gpu_done_ns, index));
        }
        lanes.push(Lane { name: name.to_owned(), phases });
    }
    holders.sort_unstable();
    acb_sim::timeline::Run {
        title: run.title.clone(),
        clients: lanes,
        gpus: vec![GpuLane { name: "GPU".to_owned(), holders }],
        counted: Some((run.steady.from, run.steady.to)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::analysis::steady_state;
    use super::super::analysis::tests::perfect;
    use super::*;

    /// Columns of the names.
    const LABEL: usize = 10;

    const PLAIN: Look = Look { width: 100, color: false, unicode: true };

    fn lines(look: Look) -> Vec<String> {
        let (alone, shared) = (
            perfect(1, 4, 4_875_000_000, 1_125_000_000),
            perfect(8, 10, 4_875_000_000, 1_125_000_000),
        );
        let run = |title: &str, rounds| Run {
            title: title.into(),
            rounds,
            steady: steady_state(rounds).unwrap(),
        };
        draw(&[run("alone", &alone), run("shared", &shared)], look)
    }

    #[test]
    fn every_client_has_a_row_that_fits() {
        for width in [20, 40, 80, 100, 200, 400] {
            let lines = lines(Look { width, ..PLAIN });
            for client in 0..8 {
                let name = format!("client-{client}");
                assert!(lines.iter().any(|line| line.starts_with(&name)), "{name}");
            }
            if width >= 40 {
                let longest = lines.iter().map(|line| line.chars().count()).max().unwrap();
                assert!(longest <= width, "{longest} columns in {width}");
            }
        }
    }

    #[test]
    fn every_gpu_phase_is_seen() {
        let lines = lines(PLAIN);
        let first = lines.iter().find(|line| line.starts_with("client-0")).unwrap();
        let phases =
            first.split(['─', '░', ' ']).filter(|part| part.contains(['█', '▌', '▐'])).count();
        assert_eq!(phases, 4, "{first}");
        let gpu = lines.iter().rfind(|line| line.starts_with("GPU")).unwrap();
        assert!(!gpu[LABEL..].trim().contains(' '), "the GPU never idles: {gpu}");
    }

    #[test]
    fn ascii_is_ascii_and_plain_has_no_escapes() {
        let ascii = lines(Look { unicode: false, ..PLAIN });
        assert!(ascii.iter().all(|line| line.is_ascii() && !line.contains('\x1b')), "{ascii:#?}");
        assert!(lines(PLAIN).iter().all(|line| !line.contains('\x1b')));
        let colored = lines(Look { color: true, ..PLAIN });
        let strip = |line: &str| {
            let mut text = String::new();
            let mut rest = line;
            while let Some(at) = rest.find('\x1b') {
                text.push_str(&rest[..at]);
                rest = &rest[at..][rest[at..].find('m').unwrap() + 1..];
            }
            text + rest
        };
        let plain: Vec<String> =
            colored.iter().map(|line| strip(line).trim_end().to_owned()).collect();
        assert_eq!(plain.len(), lines(PLAIN).len());
        assert_eq!(plain[1], lines(PLAIN)[1], "colour changes nothing of a client's row");
    }
}
