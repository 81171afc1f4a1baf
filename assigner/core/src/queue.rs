//! Named queues: clients that wait in one place, under the same policy and limits.
//!
//! Owns: what a queue is told to the scheduler as. Does not own: the order within and between queues (`plan`).

use crate::config::Policy;
use crate::ids::Priority;

/// A named queue. The queue without a name (`""`) is where everybody waits who names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Its name.
    pub name: String,
    /// Queues of higher priority go first, whatever the priority of their clients.
    pub priority: Priority,
    /// Its policy; `None`: the node's.
    pub policy: Option<Policy>,
    /// GPUs that its clients hold at once; `None`: all.
    pub max_gpus: Option<u32>,
    /// Clients that may be in it at once; further ones are refused. `None`: any number.
    pub max_clients: Option<u32>,
}

impl QueueConfig {
    /// A queue of priority 0 with the node's policy and without limits.
    #[must_use]
    pub fn new(name: impl Into<String>) -> QueueConfig {
        QueueConfig {
            name: name.into(),
            priority: Priority::default(),
            policy: None,
            max_gpus: None,
            max_clients: None,
        }
    }
}
