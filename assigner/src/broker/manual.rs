//! Manual mode: a lease by AllocRequest, back by Release, or by the end of the process.
//!
//! Such a client is not told that its lease is wanted: it ends its phases by itself.

use std::time::SystemTime;

use acb_core::{ClientId, ClientSpec, Epoch, Event, Priority};
use acb_wire::v1;
use tokio::sync::oneshot;

use super::members::{Refused, gang, printable, priority};
use super::{Broker, Client, Port};
use crate::process::ProcessId;
use crate::state::{Manual, Survivor};

/// A granted AllocRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Names the client from now on.
    pub client: u64,
    /// The lease; 0 on the CPU.
    pub epoch: u64,
    /// Empty: run on the CPU.
    pub gpus: Vec<v1::BoundGpu>,
}

/// Why an AllocRequest or a Release cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The word for the device.
    #[error("device `{0}` is not one of any, cuda, gpu, cpu")]
    Device(String),
    /// There is no GPU and the CPU will not do.
    #[error("this assigner has no GPU to give; ask for device any or cpu to run without")]
    NoGpu,
    /// The process does not exist or is another user's.
    #[error("process {0} does not exist on this node, or is not yours")]
    Process(u32),
    /// The token is unknown.
    #[error("client {0} is not known; ask with client 0 to become one")]
    Unknown(u64),
    /// One request at a time.
    #[error("client {0} already waits for a lease")]
    Waits(u64),
    /// The lease is not the client's.
    #[error("client {client} does not hold lease {epoch}")]
    NotHeld {
        /// The client.
        client: u64,
        /// The lease.
        epoch: u64,
    },
    /// What is wanted cannot be.
    #[error("{0}")]
    Impossible(String),
    /// The client left while it waited.
    #[error("the client left while it waited")]
    Gone,
}

/// What becomes of an AllocRequest.
type Answer = oneshot::Sender<Result<Allocated, AllocError>>;

/// What the next phase will have on each GPU, if that is known.
fn hint(request: &v1::AllocRequestMessage) -> Option<u64> {
    (request.memory_hint != 0).then_some(request.memory_hint)
}

impl Broker {
    /// Serves an AllocRequest: `answer` hears now or later. Returns the client, so that the request can be withdrawn.
    pub fn alloc(&mut self, request: &v1::AllocRequestMessage, answer: Answer) -> Option<ClientId> {
        match self.alloc_client(request) {
            Ok(None) => {
                let _ = answer.send(Ok(Allocated { client: 0, epoch: 0, gpus: Vec::new() }));
                None
            }
            Ok(Some(client)) => {
                self.alloc_for(client, hint(request), answer);
                Some(client)
            }
            Err(error) => {
                let _ = answer.send(Err(error));
                None
            }
        }
    }

    /// The process that a client is to end with. It may be gone already.
    pub fn process(&self, client: ClientId) -> Option<ProcessId> {
        self.clients.get(&client)?.process
    }

    /// The client that asks, joined if it is new; `None`: it is to run on the CPU.
    fn alloc_client(
        &mut self,
        request: &v1::AllocRequestMessage,
    ) -> Result<Option<ClientId>, AllocError> {
        match request.device.as_str() {
            "cpu" => return Ok(None),
            "any" | "" if self.scheduler.is_none() => return Ok(None),
            "cuda" | "gpu" if self.scheduler.is_none() => return Err(AllocError::NoGpu),
            "any" | "" | "cuda" | "gpu" => {}
            other => return Err(AllocError::Device(printable(other))),
        }
        if request.client != 0 {
            let client = ClientId(request.client);
            return match self.clients.get(&client).map(|member| &member.port) {
                Some(Port::Manual(None)) => Ok(Some(client)),
                Some(Port::Manual(Some(_))) => Err(AllocError::Waits(request.client)),
                _ => Err(AllocError::Unknown(request.client)),
            };
        }
        let process = match request.pid {
            0 => None,
            pid => {
                let own = rustix::process::geteuid().as_raw();
                let allowed = crate::process::uid_of(pid).is_some_and(|uid| own == 0 || uid == own);
                let process = ProcessId::of(pid).filter(|process| allowed && process.is_alive());
                Some(process.ok_or(AllocError::Process(pid))?)
            }
        };
        let impossible = |refused: Refused| AllocError::Impossible(refused.reason);
        let spec = ClientSpec {
            gpus: request.gpus,
            memory_limit: hint(request),
            priority: priority(request.priority).map_err(impossible)?,
            tenant: printable(&request.tenant),
            queue: printable(&request.queue),
            gang: gang(&request.gang, request.gang_size),
            ..ClientSpec::default()
        };
        let member = Client {
            port: Port::Manual(None),
            process,
            program: printable(&request.program),
            gpus_wanted: request.gpus.max(1),
            priority: spec.priority,
            tenant: spec.tenant.clone(),
            queue: spec.queue.clone(),
            ..Client::new()
        };
        let client = self.new_number();
        self.admit(client, member, spec).map_err(impossible)?;
        Ok(Some(client))
    }

    fn alloc_for(&mut self, client: ClientId, hint: Option<u64>, answer: Answer) {
        let Some(member) = self.clients.get_mut(&client) else { return };
        member.first_request.get_or_insert_with(SystemTime::now);
        member.port = Port::Manual(Some(answer));
        match self.held_epoch(client) {
            // It asks again for what it has: the answer to its first request was lost.
            Some(epoch) => self.answer_alloc(client, epoch),
            None => {
                self.clients.entry(client).and_modify(|member| member.memory_hint = hint);
                self.apply(Event::MemoryHint { client, bytes: hint });
                self.apply(Event::Acquire { client, expected: None });
            }
        }
    }

    fn held_epoch(&self, client: ClientId) -> Option<Epoch> {
        let snapshot = self.scheduler.as_ref()?.snapshot();
        snapshot.clients.iter().find(|other| other.client == client)?.epoch
    }

    pub(super) fn answer_alloc(&mut self, client: ClientId, epoch: Epoch) {
        let Some(member) = self.clients.get_mut(&client) else { return };
        let Port::Manual(answer) = &mut member.port else { return };
        let answer = answer.take();
        let leased = member.leased.clone();
        let gpus = leased.iter().map(|gpu| self.bound_gpu(*gpu, None)).collect();
        let allocated = Allocated { client: client.0, epoch: epoch.0, gpus };
        // The holder says nothing after a restart: it must be on disk before it hears of its lease.
        self.save();
        if answer.is_none_or(|answer| answer.send(Ok(allocated)).is_err()) {
            // Whoever asked has gone.
            self.apply(Event::Release { client, epoch, busy: None });
        }
    }

    /// The one who asked does not wait any more.
    pub fn withdraw_alloc(&mut self, client: ClientId) {
        let Some(member) = self.clients.get_mut(&client) else { return };
        if let Port::Manual(waiting) = &mut member.port
            && waiting.take().is_some()
        {
            self.apply(Event::Cancel { client });
        }
    }

    /// Serves a Release.
    pub fn release(&mut self, request: &v1::ReleaseMessage) -> Result<(), AllocError> {
        let client = ClientId(request.client);
        if !matches!(self.clients.get(&client).map(|member| &member.port), Some(Port::Manual(_))) {
            return Err(AllocError::Unknown(request.client));
        }
        let held = self.held_epoch(client);
        let wanted = (request.epoch != 0).then_some(Epoch(request.epoch));
        if let Some(epoch) = wanted {
            if held != Some(epoch) {
                return Err(AllocError::NotHeld { client: request.client, epoch: epoch.0 });
            }
            if let Some(member) = self.clients.get_mut(&client) {
                member.leased.clear();
            }
            self.apply(Event::Release { client, epoch, busy: None });
            self.save();
        }
        if request.finish {
            self.leave(client);
        }
        Ok(())
    }

    /// Takes a manual-mode client over from an earlier life, with its lease.
    pub(super) fn restore_manual(&mut self, survivor: Survivor) {
        let client = survivor.expected.client;
        let held = survivor.expected.held;
        let Some(manual) = survivor.manual else { return };
        let Manual { program, priority, tenant, queue, gpus, memory_hint } = manual;
        let gpus = gpus.max(u32::try_from(held.bound.len()).unwrap_or(0)).max(1);
        let spec = ClientSpec {
            gpus,
            memory_limit: memory_hint,
            held: (!held.bound.is_empty()).then_some(held),
            unbound: true,
            priority: Priority::new(priority).unwrap_or_default(),
            tenant,
            queue,
            gang: survivor.expected.gang,
            ..ClientSpec::default()
        };
        let member = Client {
            port: Port::Manual(None),
            process: Some(survivor.process),
            program,
            gpus_wanted: gpus,
            memory_hint,
            priority: spec.priority,
            tenant: spec.tenant.clone(),
            queue: spec.queue.clone(),
            ..Client::new()
        };
        if let Err(refused) = self.admit(client, member, spec) {
            tracing::warn!("{client} could not be taken over: {}", refused.reason);
        }
    }
}
