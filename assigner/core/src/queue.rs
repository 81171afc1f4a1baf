//! Named queues: clients that wait in one place, under the same policy and limits.
//!
//! Owns: what a queue is told to the scheduler as, and what its clients hold. Does not own: the order within and
//! between queues (`order`).

use crate::config::Policy;
use crate::ids::Priority;
use crate::scheduler::Ticket;

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

/// A queue, by its position in [`Queues`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueId(u32);

/// A queue and what its clients hold.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) priority: Priority,
    pub(crate) policy: Policy,
    pub(crate) max_gpus: Option<u32>,
    pub(crate) max_clients: Option<u32>,
    /// GPUs of its clients' leases.
    pub(crate) held: u32,
    /// The first request that its limit keeps from starting, whatever GPUs come back.
    pub(crate) pressed: Option<Ticket>,
    pub(crate) clients: u32,
}

/// The queues of a node; the one without a name is always there.
#[derive(Clone, Debug)]
pub(crate) struct Queues(Vec<Queue>);

impl Queues {
    pub(crate) fn new(configured: &[QueueConfig], policy: Policy) -> Queues {
        let nameless = QueueConfig::new("");
        let nameless = (!configured.iter().any(|queue| queue.name.is_empty())).then_some(&nameless);
        let queue = |config: &QueueConfig| Queue {
            name: config.name.clone(),
            priority: config.priority,
            policy: config.policy.unwrap_or(policy),
            max_gpus: config.max_gpus,
            max_clients: config.max_clients,
            held: 0,
            pressed: None,
            clients: 0,
        };
        Queues(configured.iter().chain(nameless).map(queue).collect())
    }

    pub(crate) fn find(&self, name: &str) -> Option<QueueId> {
        let at = self.0.iter().position(|queue| queue.name == name)?;
        u32::try_from(at).ok().map(QueueId)
    }

    pub(crate) fn of(&self, id: QueueId) -> &Queue {
        &self.0[id.0 as usize]
    }

    pub(crate) fn of_mut(&mut self, id: QueueId) -> &mut Queue {
        &mut self.0[id.0 as usize]
    }

    /// True if some queue is limited in what it holds.
    pub(crate) fn bounds(&self) -> bool {
        self.0.iter().any(|queue| queue.max_gpus.is_some())
    }

    pub(crate) fn press_nobody(&mut self) {
        self.0.iter_mut().for_each(|queue| queue.pressed = None);
    }

    /// True if clients of some queue may hold a GPU together.
    pub(crate) fn share(&self) -> bool {
        self.0.iter().any(|queue| !queue.policy.is_exclusive())
    }

    /// Reads what each holds (`warm`).
    pub(crate) fn warm(&self) -> u64 {
        self.0.iter().take(8).fold(0, |seen, queue| seen ^ u64::from(queue.held))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (QueueId, &Queue)> {
        (0..).map(QueueId).zip(&self.0)
    }
}
