//! The interposer in real processes, before a driver for tests and under an assigner for tests.
//!
//! Each test starts this very program again, with the interposer preloaded, as a client that plays
//! one scenario; the test itself is the assigner and says each of its words.

mod assigner;
mod client;
mod play;
mod setup;

mod between;
mod between_client;
mod contact;
mod exports;
mod exports_client;
mod fixed;
mod fixed_client;
mod forks;
mod guests;
mod guests_client;
mod handed;
mod ipc;
mod leases;
mod paging;
mod paging_client;
mod paging_contexts;
mod paging_faults;
mod paging_hashes;
mod paging_nodes;
mod paging_shared;
mod process_client;
mod rooms;

/// Not a test of its own: where the clients of the others begin.
#[test]
fn client_entry() {
    if let Ok(scenario) = std::env::var("ACB_TEST_SCENARIO") {
        client::play(&scenario);
    }
}
