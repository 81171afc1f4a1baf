//! The scheduler of one node's GPUs as a pure state machine.
//!
//! Owns: who may submit work to which GPU, in which order, and how many bytes of each GPU are promised to whom.
//! Does not own: sockets, clocks, processes, randomness. Events and the time come in, actions come out:
//!
//! ```text
//! handle(event, now)     poll_action() -> Option<Action>     poll_deadline() -> Option<Time>
//! ```
//!
//! ```
//! use acb_core::*;
//! use std::time::Duration;
//!
//! let config = Config::new(vec![GpuConfig { memory: 1 << 30 }], Policy::GpuAffinity);
//! let mut scheduler = Scheduler::new(config)?;
//! let (client, now) = (ClientId(1), Time(0));
//! let spec = ClientSpec { gpus: 1, ..ClientSpec::default() };
//! scheduler.handle(Event::Join { client, spec }, now);
//! scheduler.handle(Event::Acquire { client, expected: Some(Duration::from_secs(1)) }, now);
//! let grant = Action::Grant { client, epoch: Epoch(1), gpus: vec![Gpu(0)], is_ready: true };
//! assert_eq!(scheduler.poll_action(), Some(grant));
//! # Ok::<(), ConfigError>(())
//! ```
#![forbid(unsafe_code)]

mod config;
mod estimator;
mod event;
mod few;

mod gpu_set;
mod ids;
mod memory;
mod order;
mod placement;
mod plan;
mod queue;
mod recall;
mod restart;
mod sanity;
mod scheduler;
mod snapshot;
mod sorted;
mod span;
mod state;
mod table;
mod tenant;
mod topology;
mod turn;
mod warm;
mod written;

pub mod gang;

pub use config::{
    Backfill, Config, ConfigError, EstimatorConfig, Expected, GangConfig, GpuConfig, MemoryConfig,
    PeakConfig, Policy, Select, Settle,
};
pub use event::{
    Action, Cause, ClientSpec, Eligible, Event, Held, Obstacle, Recalls, Refusal, Rest, Room,
    RoomDenied, RoomVerdict,
};
pub use ids::{ClientId, Epoch, Gpu, Priority, Time};
pub use memory::RoomFault;
pub use queue::QueueConfig;
pub use sanity::SanityError;
pub use scheduler::Scheduler;
pub use snapshot::{
    ClientSnapshot, ClientState, GpuSnapshot, QueueSnapshot, ReservationSnapshot, Snapshot,
    TenantSnapshot,
};
pub use tenant::{FairShare, TenantConfig};
pub use topology::Topology;
