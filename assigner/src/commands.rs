//! What the second thread asks of the broker.
//!
//! Owns the channel between the two threads. It is no part of the path from release to grant.

use std::cell::RefCell;
use std::rc::Rc;

use acb_core::ClientId;
use acb_wire::v1;
use tokio::sync::{mpsc, oneshot};

use crate::broker::{AllocError, Allocated, Broker, Totals};
use crate::clients;
use crate::gangs::GangNews;

/// Commands that may wait for the broker; whoever has one more waits to send it.
pub const QUEUE: usize = 256;

/// What the broker has to show.
#[derive(Debug, Default)]
pub struct Shown {
    /// GPUs.
    pub gpus: Vec<v1::GpuStatus>,
    /// Clients.
    pub clients: Vec<v1::ClientStatus>,
    /// Gangs.
    pub gangs: Vec<v1::GangStatus>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// A question, with the place for its answer.
pub enum Command {
    /// A manual-mode client wants a lease. It is named at once, so that it can be withdrawn.
    Alloc {
        /// What it asks.
        request: v1::AllocRequestMessage,
        /// Its number, if it has to wait or holds a lease.
        named: oneshot::Sender<ClientId>,
        /// The lease.
        answer: oneshot::Sender<Result<Allocated, AllocError>>,
    },
    /// Whoever asked does not wait any more.
    Withdraw(ClientId),
    /// A manual-mode client gives its lease back.
    Release {
        /// What it says.
        request: v1::ReleaseMessage,
        /// Whether it could.
        answer: oneshot::Sender<Result<(), AllocError>>,
    },
    /// What `status` shows.
    Status(oneshot::Sender<Shown>),
    /// What clients asked for and got.
    History {
        /// Of this step; empty: all.
        step: String,
        /// The records.
        answer: oneshot::Sender<Vec<v1::ClientRecord>>,
    },
    /// From the controller of the gangs that span nodes.
    Gang(GangNews),
    /// Statistics.
    Totals(oneshot::Sender<Totals>),
}

/// Asks the broker. `None` when it is gone, and this process with it.
pub async fn ask<T>(
    sender: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (answer, wait) = oneshot::channel();
    sender.send(command(answer)).await.ok()?;
    wait.await.ok()
}

/// Serves commands for ever.
pub async fn serve(broker: Rc<RefCell<Broker>>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        obey(&broker, command);
    }
}

// Whoever asked may have gone: that an answer finds nobody is no error.
fn obey(broker: &Rc<RefCell<Broker>>, command: Command) {
    let mut borrowed = broker.borrow_mut();
    match command {
        Command::Alloc { request, named, answer } => {
            let is_new = request.client == 0;
            let Some(client) = borrowed.alloc(&request, answer) else { return };
            let _ = named.send(client);
            // Not as the pid is now: whoever was answered may have ended by then, and would never be missed.
            if let Some(process) = borrowed.process(client).filter(|_| is_new) {
                tokio::task::spawn_local(clients::watch(Rc::clone(broker), client, process));
            }
        }
        Command::Withdraw(client) => borrowed.withdraw_alloc(client),
        Command::Release { request, answer } => {
            let _ = answer.send(borrowed.release(&request));
        }
        Command::Status(answer) => {
            let _ = answer.send(borrowed.status());
        }
        Command::History { step, answer } => {
            let _ = answer.send(borrowed.history(&step));
        }
        Command::Gang(news) => borrowed.gang_news(news),
        Command::Totals(answer) => {
            let _ = answer.send(borrowed.totals());
        }
    }
}
