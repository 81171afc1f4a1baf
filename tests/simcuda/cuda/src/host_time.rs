//! Modelled time that a call takes of its caller (mapping, pinning). It is slept,
//! not burnt; short debts are gathered, and what a sleep took too long is
//! credited, so that the sum is right however coarse the system's timer is.

use std::cell::Cell;
use std::time::Duration;

use simcuda_device::{Nanos, clock};

const WORTH_A_SLEEP: i64 = 100_000;
const LARGEST_CREDIT: i64 = -2_000_000;

thread_local! {
    static DEBT: Cell<i64> = const { Cell::new(0) };
}

/// Makes the calling thread pay `cost`. Call it without any lock held.
pub(crate) fn pay(cost: Nanos) {
    if cost == 0 {
        return;
    }
    let debt = DEBT.get() + cost as i64;
    if debt < WORTH_A_SLEEP {
        DEBT.set(debt);
        return;
    }
    let before = clock::now();
    std::thread::sleep(Duration::from_nanos(debt as u64));
    let slept = (clock::now() - before) as i64;
    DEBT.set((debt - slept).max(LARGEST_CREDIT));
}
