//! The one owner of the scheduler: turns what clients and tools say into events, and the
//! scheduler's actions into messages.
//!
//! Owns all mutable state of a worker. Lives on the worker's one thread, in an `Rc<RefCell>` that
//! is borrowed between two awaits and never across one; a message to a client is written from here
//! straight to its socket, so that a release and the grant that follows are one hop.
//! Does not own: connections ([`crate::clients`]), gRPC ([`crate::grpc`]), files.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | events in, actions out, the clock |
//! | `members.rs` | joining, coming back, leaving |
//! | `messages.rs` | what a client says on its socket, and what it is told |
//! | `memory.rs` | the same of device memory |
//! | `manual.rs` | AllocRequest and Release |
//! | `report.rs` | status, history, statistics, what a restart needs |

mod manual;
mod members;
mod memory;
mod messages;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use acb_core::gang::Report;
use acb_core::{Action, ClientId, Config, Event, Gpu, GpuConfig, Room, Scheduler, Settle, Time};
use acb_wire::v1;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use manual::{AllocError, Allocated};
pub use members::{Newcomer, Refused};
pub use memory::size;
pub use report::{GpuTotals, Totals};

use crate::gangs::GangNews;
use crate::inventory::Device;
use crate::meter::Meter;
use crate::outbox::Outbox;
use crate::process::ProcessId;
use crate::settings::Settings;
use crate::state::{Remembered, State};
use crate::vigil::Vigil;

/// How long clients of an earlier life have to come back.
const SETTLE: Duration = Duration::from_secs(2);
/// Clients that are remembered after they have left.
const HISTORY: usize = 1000;

/// The scheduler and everybody who speaks with it.
pub struct Broker {
    settings: Rc<Settings>,
    gpus: Vec<Device>,
    /// `None` where there is no GPU: then manual-mode clients run on the CPU and others are refused.
    scheduler: Option<Scheduler>,
    clock: Clock,
    clients: BTreeMap<ClientId, Client>,
    next_client: u64,
    /// Clients of an earlier life that have not come back, with their processes.
    expected: BTreeMap<ClientId, ProcessId>,
    /// What was written down of them.
    earlier: Vec<Remembered>,
    history: VecDeque<v1::ClientRecord>,
    departed: report::Departed,
    busy: Vec<Duration>,
    meter: Arc<Meter>,
    /// The largest context that was measured.
    context: Option<u64>,
    /// Wakes the task that waits for the deadline.
    timer: Rc<Notify>,
    armed: Option<Time>,
    /// Keeps the thread awake for a release that is announced.
    vigil: Rc<Vigil>,
    /// Where reports for the controller go.
    gang_reports: Option<mpsc::UnboundedSender<Report>>,
    /// Counts changes, for those who watch.
    changes: watch::Sender<u64>,
    /// Something changed since the state was written.
    dirty: bool,
    /// Clients of an earlier life were waited for when the scheduler was last asked.
    settles: bool,
    /// What memory it says that each client may have.
    written: BTreeMap<(ClientId, Gpu), Room>,
    /// GPUs on which memory is missing, and NVML is asked for it.
    looked_after: BTreeSet<Gpu>,
    /// What of the GPUs' settings is in the way.
    cautions: Vec<String>,
}

/// One client, as far as the scheduler does not know it.
struct Client {
    port: Port,
    process: Option<ProcessId>,
    /// Its own view of its pid, where ours cannot see it.
    claimed_pid: u32,
    program: String,
    step: String,
    rank: u32,
    gpus_wanted: u32,
    priority: acb_core::Priority,
    tenant: String,
    queue: String,
    /// In its own device order; empty until it is bound.
    bound: Vec<Gpu>,
    /// GPUs of its present lease.
    leased: Vec<Gpu>,
    /// Device memory that it may have on each GPU.
    memory_limit: Option<u64>,
    /// In manual mode: how much its present or next phase has, as it said.
    memory_hint: Option<u64>,
    /// What it last reported of its memory, by its own device number.
    memory: BTreeMap<u32, v1::MemoryReport>,
    /// Why its memory stays on a GPU although it was asked for, and who has been told.
    stays: BTreeMap<Gpu, (String, BTreeSet<ClientId>)>,
    /// The epoch of a lease that does not end, and who has been told.
    stuck: (u64, BTreeSet<ClientId>),
    /// Room requests that wait.
    waiting_rooms: BTreeSet<u64>,
    joined: SystemTime,
    first_request: Option<SystemTime>,
    first_grant: Option<SystemTime>,
    /// GPUs of all its leases.
    given: BTreeSet<Gpu>,
}

/// How a client is told something.
enum Port {
    /// Through its socket.
    Socket(Rc<Outbox>),
    /// Its connection broke, but its process lives: it may come back.
    Lost,
    /// By the answer to its AllocRequest, if one waits.
    Manual(Option<oneshot::Sender<Result<Allocated, AllocError>>>),
}

/// The scheduler's clock: monotonic, from the start of this life.
#[derive(Clone, Copy)]
struct Clock {
    origin: Instant,
}

impl Clock {
    fn now(self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn instant(self, time: Time) -> Instant {
        self.origin + Duration::from_nanos(time.0)
    }
}

impl Broker {
    /// A broker for these GPUs that goes on where an earlier life ended. Returns the processes
    /// whose end is to be reported with [`Broker::process_gone`].
    pub fn new(
        settings: Rc<Settings>,
        gpus: Vec<Device>,
        state: &State,
    ) -> Result<(Broker, Vec<(ClientId, ProcessId)>), acb_core::ConfigError> {
        let clock = Clock { origin: Instant::now() };
        let (manual, others): (Vec<_>, Vec<_>) =
            state.survivors(&gpus).into_iter().partition(|survivor| survivor.manual.is_some());
        let watch: Vec<_> = manual
            .iter()
            .chain(&others)
            .map(|survivor| (survivor.expected.client, survivor.process))
            .collect();
        let settle = Settle {
            until: clock.now().after(SETTLE),
            expected: others.iter().map(|survivor| survivor.expected.clone()).collect(),
            departed: state.departed(),
        };
        let scheduler = match gpus.is_empty() {
            true => None,
            false => Some(Scheduler::new(config(&settings, &gpus, state, settle))?),
        };
        let mut broker = Broker {
            busy: vec![Duration::ZERO; gpus.len()],
            meter: Arc::new(Meter::new(settings.nvml.as_deref())),
            context: None,
            gpus,
            scheduler,
            clock,
            clients: BTreeMap::new(),
            next_client: state.next_client.max(1),
            expected: others.iter().map(|it| (it.expected.client, it.process)).collect(),
            earlier: state.clients.clone(),
            history: VecDeque::new(),
            departed: report::Departed::default(),
            timer: Rc::new(Notify::new()),
            armed: None,
            vigil: Rc::default(),
            gang_reports: None,
            changes: watch::Sender::new(0),
            dirty: true,
            settles: true,
            written: BTreeMap::new(),
            looked_after: BTreeSet::new(),
            cautions: Vec::new(),
            settings,
        };
        for survivor in manual {
            broker.restore_manual(survivor);
        }
        broker.save();
        Ok((broker, watch))
    }

    /// Applies an event and does what follows from it.
    fn apply(&mut self, event: Event) {
        let Some(scheduler) = &mut self.scheduler else { return };
        scheduler.handle(event, self.clock.now());
        self.pump();
    }

    /// Carries out what the scheduler wants done.
    fn pump(&mut self) {
        let settles = self.scheduler.as_ref().is_some_and(Scheduler::is_settling);
        if std::mem::replace(&mut self.settles, settles) && !settles {
            self.save(); // before anybody is granted what a sleeper had
        }
        while let Some(action) = self.scheduler.as_mut().and_then(Scheduler::poll_action) {
            self.act(action);
        }
        self.rearm();
        self.dirty = true;
        if self.changes.receiver_count() > 0 {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Bound { client, gpus } => self.tell_bound(client, gpus),
            Action::Grant { client, epoch, gpus, is_ready } => {
                self.tell_granted(client, epoch, gpus, is_ready);
            }
            Action::Wanted { client, epoch } => self.tell_wanted(client, epoch),
            Action::Overtaken { client, epoch } => self.tell_overtaken(client, epoch),
            Action::Recall { client, epoch } => self.tell_recall(client, epoch),
            Action::Room { client, seq, verdict } => self.tell_room(client, seq, verdict),
            Action::Evict { client, gpu, bytes } => self.tell_evict(client, gpu, bytes),
            Action::Credit { client, gpu, bytes } => self.tell_credit(client, gpu, bytes),
            Action::Withdraw { client, gpu } => self.tell_withdraw(client, gpu),
            Action::Stay { client, gpu } => self.tell_stay(client, gpu),
            Action::Arena { client, bytes } => self.tell_arena(client, bytes),
            Action::Blocked { client, gpu, by, bytes } => {
                self.tell_blocked(client, gpu, by, bytes);
            }
            // A refused Join is taken out of the queue where the client joins; this came later.
            Action::Refused { client, reason } => self.turn_away(client, &reason.to_string()),
            Action::GangReport(report) => {
                if let Some(reports) = &self.gang_reports {
                    let _ = reports.send(report); // the second thread ends with this process
                }
            }
        }
    }

    /// Says where reports for the controller of gangs go.
    pub fn report_gangs_to(&mut self, reports: mpsc::UnboundedSender<Report>) {
        self.gang_reports = Some(reports);
    }

    /// The controller of gangs is there, is lost, or says something.
    pub fn gang_news(&mut self, news: GangNews) {
        self.apply(match news {
            GangNews::Connected(session) => Event::GangConnected(session),
            GangNews::Disconnected => Event::GangDisconnected,
            GangNews::Order(order) => Event::GangOrder(order),
        });
    }

    /// The deadline of [`Broker::deadline`] has come.
    pub fn tick(&mut self) {
        self.armed = None;
        self.apply(Event::Timer);
    }

    /// When to call [`Broker::tick`].
    pub fn deadline(&mut self) -> Option<Instant> {
        self.armed = self.scheduler.as_ref().and_then(Scheduler::poll_deadline);
        self.armed.map(|time| self.clock.instant(time))
    }

    /// Told when the deadline has moved to the front.
    pub fn timer(&self) -> Rc<Notify> {
        Rc::clone(&self.timer)
    }

    /// What keeps the thread awake now and then.
    pub fn vigil(&self) -> Rc<Vigil> {
        Rc::clone(&self.vigil)
    }

    fn rearm(&self) {
        let next = self.scheduler.as_ref().and_then(Scheduler::poll_deadline);
        // A deadline that moved back wakes the timer once for nothing; that is cheaper than to
        // wake it for every grant.
        if next.is_some_and(|next| self.armed.is_none_or(|armed| next < armed)) {
            self.timer.notify_one();
        }
    }

    /// What a reader of status should know of the GPUs, as long as this lives.
    pub fn caution(&mut self, cautions: Vec<String>) {
        self.cautions = cautions;
    }

    /// Counts changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The daemon's settings.
    pub fn settings(&self) -> &Rc<Settings> {
        &self.settings
    }

    fn gpu(&self, gpu: Gpu) -> &Device {
        &self.gpus[gpu.0 as usize]
    }

    fn bound_gpu(&self, gpu: Gpu, limit: Option<u64>) -> v1::BoundGpu {
        let device = self.gpu(gpu);
        let most = device.memory.saturating_sub(self.settings.memory.headroom(device));
        let all = limit.map_or(most, |limit| limit.min(most));
        bound_gpu(device, all.saturating_sub(self.settings.client.context))
    }
}

/// What a client is told of a GPU on which it may have so much memory.
fn bound_gpu(device: &Device, memory: u64) -> v1::BoundGpu {
    v1::BoundGpu {
        index: device.index,
        uuid: device.uuid.clone(),
        memory,
        numa_node: device.numa_node.map_or(0, |node| node.saturating_add(1)),
    }
}

fn config(settings: &Settings, gpus: &[Device], state: &State, settle: Settle) -> Config {
    let scheduling = &settings.scheduling;
    let devices = gpus;
    let gpus = gpus.iter().map(|gpu| GpuConfig { memory: gpu.memory }).collect();
    let mut config = Config::new(gpus, scheduling.policy);
    config.quantum = scheduling.quantum;
    config.max_bypass = scheduling.max_bypass;
    config.max_bypass_time = scheduling.max_bypass_time;
    config.estimator = scheduling.estimator.clone();
    config.first_epoch = acb_core::Epoch(state.epoch_limit.max(1));
    config.settle = settle;
    config.gangs.alone = settings.nodes <= 1;
    config.switch_share = settings.memory.switch_share;
    config.memory.host_budget = settings.memory.host_budget;
    config.memory.headroom = devices.iter().map(|gpu| settings.memory.headroom(gpu)).collect();
    config.peaks = scheduling.peaks.clone();
    config.topology = crate::topology::topology(settings.nvml.as_deref(), devices);
    let tenancy = &scheduling.tenancy;
    config.queues = tenancy.queue_configs();
    let count = u32::try_from(config.gpus.len()).unwrap_or(u32::MAX);
    config.tenants = tenancy.tenant_configs(count);
    for surprise in tenancy.surprises(count) {
        tracing::warn!("{surprise}");
    }
    config.fair_share = tenancy.fair_share();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_the_node_of_its_gpu_plus_one() {
        let told = |numa_node| {
            let (uuid, name) = ("GPU-1".into(), "T".into());
            bound_gpu(&Device { index: 3, uuid, name, memory: 80, numa_node }, 70)
        };
        let (first, unknown) = (told(Some(0)), told(None));
        assert_eq!((first.index, first.memory, first.numa_node), (3, 70, 1));
        assert_eq!(told(Some(1)).numa_node, 2);
        assert_eq!(unknown.numa_node, 0);
    }
}
