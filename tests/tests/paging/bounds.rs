//! How long each fault may last: the table "Faults" of docs/architecture.md, a row each, and how much longer a slow machine may take.
//! The bounds are there to catch a hang, not to measure.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How many times as long as on a quiet machine it may take.
const SLOW: u32 = 10;
/// What a turn of a test takes on a quiet machine beside the fault, at most: memory is moved, looked at, programs are started.
const TURN: Duration = Duration::from_secs(1);

/// A row of the table.
pub(crate) struct Bound {
    /// Its first column.
    row: &'static str,
    /// What its last column says, among other things.
    says: &'static str,
    /// That as a time.
    stated: Duration,
}

const fn bound(row: &'static str, says: &'static str, stated_ms: u64) -> Bound {
    Bound { row, says, stated: Duration::from_millis(stated_ms) }
}

pub(crate) const PAGE_IN: Bound = bound("a call or a copy of a page-in fails", "250 ms", 250);
pub(crate) const PAGE_OUT: Bound = bound("… of a page-out", "then after 1 s", 1000);
pub(crate) const LAST_CONTEXT: Bound = bound("a copy breaks the last context", "at once", 0);
pub(crate) const RUNS_OUT: Bound =
    bound("memory runs out in a page-in", "as a call that fails", 250);
pub(crate) const HOST_BUDGET: Bound = bound("host budget gone", "at once", 0);
pub(crate) const KILLED: Bound = bound("a client is killed while its memory moves", "at once", 0);
pub(crate) const STOPPED: Bound = bound("a victim is stopped, or moves nothing", "5 s", 5000);
pub(crate) const ASSIGNER: Bound = bound("the assigner is killed", "2 s", 2000);
pub(crate) const ENDLESS: Bound = bound("a kernel does not end", "told after 5 s", 5000);
pub(crate) const NO_HOST_MEMORY: Bound =
    bound("no host memory for what would have to move", "as a page-out that fails", 1000);
pub(crate) const NO_SYMBOL: Bound = bound("a symbol that the driver lacks", "at once", 0);
pub(crate) const NEWER: Bound = bound("a driver newer than the list", "at once, in cuInit", 0);

/// Does something that must have ended by then.
pub(crate) fn within<T>(bound: &Bound, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (begin, most) = (Instant::now(), (bound.stated + TURN) * SLOW);
    let done = work()?;
    let took = begin.elapsed();
    ensure!(
        took <= most,
        "{}: it took {took:?}; {:?} are stated, and on a slow machine {most:?} are no hang",
        bound.row,
        bound.stated
    );
    Ok(done)
}

#[test]
fn every_bound_is_as_the_page_states_it() {
    let page = include_str!("../../../docs/architecture.md");
    for bound in [
        PAGE_IN,
        PAGE_OUT,
        LAST_CONTEXT,
        RUNS_OUT,
        HOST_BUDGET,
        KILLED,
        STOPPED,
        ASSIGNER,
        ENDLESS,
        NO_HOST_MEMORY,
        NO_SYMBOL,
        NEWER,
    ] {
        let line = page.lines().find(|line| line.starts_with(&format!("| {} |", bound.row)));
        let last = line.and_then(|line| line.trim_end_matches([' ', '|']).rsplit('|').next());
        assert!(last.is_some_and(|last| last.contains(bound.says)), "{}: {line:?}", bound.row);
    }
}
