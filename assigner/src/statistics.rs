//! Statistics: `stats.json` and the job's comment.
//!
//! Owns when they are written: at most once a second, and only after a change. A daemon that is
//! killed leaves what it wrote last. Sums go on over the lives of the worker.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::Totals;
use crate::commands::{Command, ask};
use crate::comment::Commenter;
use crate::node::Node;

/// How often statistics are written.
const EVERY: Duration = Duration::from_secs(1);

/// The content of `stats.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// This node.
    pub node: String,
    /// The Slurm job, if there is one.
    pub job: Option<u32>,
    /// Seconds that the daemon has run.
    pub seconds: f64,
    /// Counts.
    pub totals: Totals,
}

impl Statistics {
    /// One line for people, as the job's comment shows it.
    pub fn line(&self) -> String {
        let totals = &self.totals;
        let busy: u64 = totals.per_gpu.iter().map(|gpu| gpu.busy_ns).sum();
        let available = self.seconds * 1e9 * totals.gpus as f64;
        let share = if available > 0.0 { 100.0 * busy as f64 / available } else { 0.0 };
        let wait = match totals.grants {
            0 => 0.0,
            grants => totals.wait_ns as f64 / 1e9 / grants as f64,
        };
        format!(
            "{}, {}, {}, busy {share:.0} %, mean wait {wait:.1} s",
            counted(totals.gpus as u64, "GPU"),
            counted(totals.clients, "client"),
            counted(totals.grants, "grant"),
        )
    }
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Keeps statistics for ever.
pub async fn keep(node: Arc<Node>, broker: mpsc::Sender<Command>) {
    let path = node.settings.folder.stats();
    // Only a restarted worker goes on with the sums; a new daemon begins at zero.
    let before = match node.is_restarted() {
        true => std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()),
        false => None,
    };
    let before: Statistics = before.unwrap_or_default();
    let mut commenter = Commenter::of(&node.settings);
    let mut changes = node.changes();
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut written = None;
    loop {
        clock.tick().await;
        let is_changed = changes.has_changed().unwrap_or(true);
        changes.mark_unchanged();
        if is_changed || written.is_none() {
            let Some(totals) = ask(&broker, Command::Totals).await else { return };
            let statistics = Statistics {
                node: node.settings.node.clone(),
                job: node.settings.job.as_ref().map(|job| job.id),
                seconds: node.uptime().as_secs_f64(),
                totals: totals.after(&before.totals),
            };
            let text = serde_json::to_vec(&statistics).expect("numbers and strings become JSON");
            if let Err(error) = crate::files::replace(&path, &text) {
                tracing::warn!("{} cannot be written: {error}", path.display());
            }
            written = Some(statistics);
        }
        if let (Some(commenter), Some(statistics)) = (&mut commenter, &written) {
            commenter.offer(&statistics.line());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::GpuTotals;

    #[test]
    fn the_line_counts_and_divides() {
        let gpu = GpuTotals { busy_ns: 93_000_000_000, ..GpuTotals::default() };
        let totals = Totals {
            gpus: 2,
            clients: 8,
            grants: 134,
            wait_ns: 160_800_000_000,
            per_gpu: vec![gpu.clone(), gpu],
        };
        let statistics = Statistics { seconds: 100.0, totals, ..Statistics::default() };
        assert_eq!(statistics.line(), "2 GPUs, 8 clients, 134 grants, busy 93 %, mean wait 1.2 s");
        assert_eq!(
            Statistics::default().line(),
            "0 GPUs, 0 clients, 0 grants, busy 0 %, mean wait 0.0 s"
        );
    }
}
