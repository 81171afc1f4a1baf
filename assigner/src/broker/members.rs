//! Joining, coming back, and leaving.

use std::rc::Rc;
use std::time::SystemTime;

use acb_core::gang::GangSpec;
use acb_core::{Action, ClientId, ClientSpec, Eligible, Epoch, Event, Gpu, Held, Priority, Room};
use acb_wire::v1::{self, RefusedCode, assigner_message::Kind};

use super::{Broker, Client, HISTORY, Port};
use crate::outbox::Outbox;
use crate::process::ProcessId;
use crate::strangers::Clients;

/// Somebody on a new connection, with its first message.
pub struct Newcomer {
    /// Its process, as the kernel knows it; `None` where it is in a pid namespace that we cannot see.
    pub process: Option<ProcessId>,
    /// What it says of itself.
    pub hello: v1::Hello,
    /// How to answer.
    pub outbox: Rc<Outbox>,
}

/// Why somebody cannot join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For programs.
    pub code: RefusedCode,
    /// For people.
    pub reason: String,
}

impl Refused {
    pub(crate) fn new(code: RefusedCode, reason: impl Into<String>) -> Refused {
        Refused { code, reason: reason.into() }
    }

    /// The message for the client.
    pub fn message(self) -> Kind {
        Kind::Refused(v1::Refused { code: self.code.into(), reason: self.reason })
    }
}

/// How often clients may ask what the driver has taken for them: NVML takes its time.
const MEASURE_MS: u32 = 3000;

impl Broker {
    /// The processes of all clients, and of those who have yet to come back.
    pub fn processes(&self) -> Clients {
        let mut all = Clients::default();
        for member in self.clients.values() {
            let Some(process) = member.process else { continue };
            match member.port {
                Port::Manual(_) => all.families.insert(process.pid),
                Port::Socket(_) | Port::Lost => all.processes.insert(process.pid),
            };
        }
        all.processes.extend(self.expected.values().map(|process| process.pid));
        all
    }

    /// A client says Hello. It is welcomed before anything else is sent to it; with what is to be said at once in one piece, so that who
    /// comes back with a lease that is not its own any more does not believe in it in between.
    pub fn join(&mut self, newcomer: Newcomer) -> Result<ClientId, Refused> {
        let outbox = Rc::clone(&newcomer.outbox);
        outbox.hold();
        let joined = self.let_in(newcomer);
        outbox.release();
        joined
    }

    fn let_in(&mut self, newcomer: Newcomer) -> Result<ClientId, Refused> {
        let hello = &newcomer.hello;
        if hello.protocol != acb_wire::PROTOCOL {
            let (theirs, ours) = (hello.protocol, acb_wire::PROTOCOL);
            return Err(Refused::new(
                RefusedCode::Protocol,
                format!(
                    "the client speaks protocol {theirs}, this assigner {ours}; install one version of both"
                ),
            ));
        }
        if self.scheduler.is_none() {
            return Err(Refused::new(RefusedCode::Impossible, "this assigner has no GPU to give"));
        }
        let held = hello.held.as_ref().map(|held| self.held(held)).transpose()?;
        if let (Some(held), Some(said)) = (&held, &hello.held)
            && let Some(client) = self.lost_client(said.client, newcomer.process)
        {
            self.reconnect(client, held, newcomer.outbox);
            return Ok(client);
        }
        let eligible = self.eligible(&hello.eligible)?;
        let memory_limit = self.memory_limit(hello)?;
        let client = self.number(hello.held.as_ref(), newcomer.process);
        let priority = priority(hello.priority)?;
        let (tenant, queue) = (printable(&hello.tenant), printable(&hello.queue));
        let spec = ClientSpec {
            gpus: hello.gpus,
            eligible,
            held: held.clone(),
            memory_limit,
            gang: gang(&hello.gang, hello.gang_size),
            priority,
            unbound: false,
            tenant: tenant.clone(),
            queue: queue.clone(),
        };
        let member = Client {
            port: Port::Socket(newcomer.outbox),
            process: newcomer.process,
            claimed_pid: hello.pid,
            program: printable(&hello.program),
            step: printable(&hello.step),
            rank: hello.rank,
            gpus_wanted: hello.gpus.max(1),
            memory_limit,
            priority,
            tenant,
            queue,
            ..Client::new()
        };
        self.admit(client, member, spec)?;
        Ok(client)
    }

    /// Joins a client; its port hears of it if it is a socket.
    pub(super) fn admit(
        &mut self,
        client: ClientId,
        mut member: Client,
        spec: ClientSpec,
    ) -> Result<(), Refused> {
        let Some(scheduler) = &mut self.scheduler else {
            return Err(Refused::new(RefusedCode::Impossible, "this assigner has no GPU to give"));
        };
        if let Some(held) = &spec.held {
            let gpus: Vec<Gpu> = held.bound.iter().map(|(gpu, _)| *gpu).collect();
            member.given = gpus.iter().copied().collect();
            if held.lease.is_some() {
                member.leased.clone_from(&gpus);
            }
            if !spec.unbound {
                member.bound = gpus;
            }
        }
        self.expected.remove(&client);
        scheduler.handle(Event::Join { client, spec }, self.clock.now());
        let actions: Vec<Action> = std::iter::from_fn(|| scheduler.poll_action()).collect();
        let refusal = actions.iter().find_map(|action| match action {
            Action::Refused { client: who, reason } if *who == client => Some(reason.to_string()),
            _ => None,
        });
        if refusal.is_some() {
            scheduler.handle(Event::Leave { client }, self.clock.now()); // it has nothing
        } else {
            tracing::info!("{client} joined: {} (pid {})", member.program, member.pid());
            if let Port::Socket(outbox) = &member.port {
                self.welcome(client, outbox);
            }
            self.clients.insert(client, member);
        }
        for action in actions {
            if !matches!(&action, Action::Refused { client: who, .. } if *who == client) {
                self.act(action);
            }
        }
        self.pump();
        self.save();
        refusal.map_or(Ok(()), |reason| Err(Refused::new(RefusedCode::Impossible, reason)))
    }

    fn welcome(&self, client: ClientId, outbox: &Outbox) {
        let terms = &self.settings.client;
        let on_failure = match terms.on_failure {
            acb_cluster_conf::OnFailure::Open => v1::OnFailure::Open,
            acb_cluster_conf::OnFailure::Fail => v1::OnFailure::Fail,
        };
        outbox.send(Kind::Welcome(v1::Welcome {
            client: client.0,
            idle_us: terms.idle_us,
            grace_ms: terms.grace_ms,
            on_failure: on_failure.into(),
            context_bytes: match terms.context {
                0 => 0, // not to be counted
                configured => self.context.unwrap_or(configured),
            },
            chunk_bytes: self.settings.memory.chunk,
            compare: self.settings.memory.compare,
            measure_ms: MEASURE_MS,
        }));
    }

    /// The connection of a client broke. It keeps what it has until its process is gone
    /// ([`Broker::leave`]) or it comes back.
    pub fn disconnect(&mut self, client: ClientId) {
        if let Some(member) = self.clients.get_mut(&client) {
            member.port = Port::Lost;
            self.apply(Event::Away { client });
        }
    }

    /// Whether a client's connection broke and it has not come back.
    pub fn is_lost(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|member| matches!(member.port, Port::Lost))
    }

    /// Whether there is such a client.
    pub fn has(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// A client is gone, with all that it had on the GPU.
    pub fn leave(&mut self, client: ClientId) {
        let Some(record) = self.record(client) else { return };
        self.departed.add(&record);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        tracing::info!(
            "{client} left: {} (pid {}) has ended{}",
            record.program,
            record.pid,
            self.what_it_leaves(client)
        );
        self.history.push_back(v1::ClientRecord { left_ns: epoch_ns(SystemTime::now()), ..record });
        self.clients.remove(&client);
        self.apply(Event::Leave { client });
        self.save();
    }

    /// A client that had joined cannot be served after all.
    pub(super) fn turn_away(&mut self, client: ClientId, reason: &str) {
        tracing::warn!("{client} is refused: {reason}");
        match self.clients.get(&client).map(|member| &member.port) {
            // What it has stays counted until its process is gone.
            Some(Port::Socket(outbox)) => {
                outbox.send(Refused::new(RefusedCode::Impossible, reason).message());
            }
            _ => self.leave(client),
        }
    }

    /// The process of a client of an earlier life, or of a manual-mode client, is gone.
    pub fn process_gone(&mut self, client: ClientId) {
        if self.expected.remove(&client).is_some() {
            tracing::info!("{client} ended while the assigner was away");
            self.apply(Event::Leave { client });
            self.save();
        } else {
            self.leave(client);
        }
    }

    pub(super) fn new_number(&mut self) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        client
    }

    /// A client that comes back after a restart keeps its number.
    fn number(&mut self, held: Option<&v1::Held>, process: Option<ProcessId>) -> ClientId {
        let before = held.map(|held| ClientId(held.client));
        match before
            .filter(|client| process.is_some() && self.expected.get(client) == process.as_ref())
        {
            Some(client) => client,
            None => self.new_number(),
        }
    }

    fn held(&self, held: &v1::Held) -> Result<Held, Refused> {
        let bound = held.bound.iter().enumerate().map(|(at, uuid)| {
            let gpu = self.find(uuid).ok_or_else(|| {
                Refused::new(
                    RefusedCode::Impossible,
                    format!("{uuid} is no longer handed out here; start the program again"),
                )
            })?;
            let of = |list: &[u64]| list.get(at).copied().unwrap_or(0);
            let (fixed, claimed) = (of(&held.room), of(&held.claimed));
            Ok((gpu, Room { fixed, claimed, resident: of(&held.resident) }))
        });
        let lease = (held.epoch != 0).then_some(Epoch(held.epoch));
        Ok(Held { bound: bound.collect::<Result<_, _>>()?, lease })
    }

    fn eligible(&self, uuids: &[String]) -> Result<Eligible, Refused> {
        if uuids.is_empty() {
            return Ok(Eligible::All);
        }
        let gpus: Vec<Gpu> = uuids.iter().filter_map(|uuid| self.find(uuid)).collect();
        if gpus.is_empty() {
            let ours: Vec<&str> = self.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
            return Err(Refused::new(
                RefusedCode::Impossible,
                format!(
                    "none of the GPUs {} is handed out here; there are {}",
                    uuids.join(","),
                    ours.join(",")
                ),
            ));
        }
        Ok(Eligible::Only(gpus))
    }

    fn find(&self, uuid: &str) -> Option<Gpu> {
        let position = self.gpus.iter().position(|gpu| gpu.uuid == uuid)?;
        u32::try_from(position).ok().map(Gpu)
    }

    fn lost_client(&self, number: u64, process: Option<ProcessId>) -> Option<ClientId> {
        let client = ClientId(number);
        let member = self.clients.get(&client)?;
        let same = process.is_some() && member.process == process;
        (same && matches!(member.port, Port::Lost)).then_some(client)
    }

    /// A client comes back in the same life of the assigner: what it says it holds counts.
    fn reconnect(&mut self, client: ClientId, held: &Held, outbox: Rc<Outbox>) {
        tracing::info!("{client} is back");
        self.welcome(client, &outbox);
        let Some(member) = self.clients.get_mut(&client) else { return };
        member.port = Port::Socket(outbox);
        let rooms = std::mem::take(&mut member.waiting_rooms);
        for seq in rooms {
            self.apply(Event::RoomCancel { client, seq });
        }
        let Some(scheduler) = &self.scheduler else { return };
        let snapshot = scheduler.snapshot();
        let Some(now) = snapshot.clients.iter().find(|other| other.client == client) else {
            return;
        };
        for (gpu, ours) in now.room.clone() {
            let said = held.bound.iter().find(|(bound, _)| *bound == gpu);
            self.reconcile_room(client, gpu, ours, said.map_or(Room::default(), |(_, room)| *room));
        }
        self.apply(Event::Back { client, lease: held.lease });
        self.save();
    }
}

impl Client {
    pub(super) fn new() -> Client {
        Client {
            port: Port::Lost,
            process: None,
            claimed_pid: 0,
            program: String::new(),
            step: String::new(),
            rank: 0,
            gpus_wanted: 1,
            priority: acb_core::Priority::default(),
            tenant: String::new(),
            queue: String::new(),
            bound: Vec::new(),
            leased: Vec::new(),
            memory_limit: None,
            memory_hint: None,
            memory: Default::default(),
            stays: Default::default(),
            stuck: Default::default(),
            waiting_rooms: Default::default(),
            joined: SystemTime::now(),
            first_request: None,
            first_grant: None,
            given: Default::default(),
        }
    }

    /// The pid that is shown to people.
    pub(super) fn pid(&self) -> u32 {
        self.process.map_or(self.claimed_pid, |process| process.pid)
    }
}

/// The priority that a client says.
pub(super) fn priority(number: i32) -> Result<Priority, Refused> {
    Priority::new(number).ok_or_else(|| {
        let reason = format!("priority {number} is not from -100 to 100");
        Refused::new(RefusedCode::Impossible, reason)
    })
}

/// The gang that a client says; one alone is none.
pub(super) fn gang(name: &str, size: u32) -> Option<GangSpec> {
    let name = printable(name);
    (!name.is_empty() && size > 1).then(|| GangSpec { name: name.as_str().into(), size })
}

pub(super) fn epoch_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a client says ends in terminals and logs.
pub(super) fn printable(text: &str) -> String {
    shown(text, 64)
}

/// The same for what a client says in a whole sentence.
pub(super) fn sentence(text: &str) -> String {
    shown(text, 512)
}

fn shown(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}
