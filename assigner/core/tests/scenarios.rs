//! Plays the scenarios in `tests/scenarios/*.txt` and compares what the scheduler does with what
//! they expect; the invariants are checked after every event.
//!
//! A scenario is a list of lines:
//!
//! ```text
//! # a comment
//! node gpus=2 memory=100 policy=gpu-affinity quantum=10s     starts a scheduler; keys can be left out
//!      tenants=NAME:GUARANTEE[/LIMIT][*WEIGHT];…              tenants, queues, the half-life of fair share
//!      queues=NAME[@PRIORITY][/GPUS][#CLIENTS][:POLICY];… fair=60s distances=0,1;1,0 links=0,1
//! 0s join 1 gpus=2 on=0,1 held=0:40,1:40:60:20 lease=7       an event: when, what, of which client;
//!                                                            GPU:FIXED or GPU:FIXED:CLAIMED:RESIDENT
//! 0s join 2 prio=5 tenant=a queue=q gang=NAME:SIZE
//!     1 refused: …                                           indented: the actions that follow
//! 5s show                                                    what a snapshot shows
//! ```
//!
//! With `ACB_UPDATE_SCENARIOS=1` the files are written anew with what the scheduler does now; look
//! at the difference before you keep it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use acb_core::*;
use anyhow::{Context, Result, bail};

#[test]
fn scenarios() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    assert!(!files.is_empty(), "no scenarios in {}", folder.display());
    let mut failures = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        let played = play(&text).with_context(|| format!("{}", file.display()))?;
        if std::env::var_os("ACB_UPDATE_SCENARIOS").is_some() {
            std::fs::write(&file, &played)?;
        } else if let Some((number, (expected, got))) =
            (1..).zip(text.lines().zip(played.lines())).find(|(_, (a, b))| a != b)
        {
            writeln!(
                failures,
                "{}:{number}:\n expected {expected}\n got      {got}",
                file.display()
            )?;
        } else if text.lines().count() != played.lines().count() {
            writeln!(failures, "{}: expected\n{text}\ngot\n{played}", file.display())?;
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{failures}") }
}

/// The scenario with the actions that really follow.
fn play(text: &str) -> Result<String> {
    let mut played = String::new();
    let mut scheduler: Option<Scheduler> = None;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with(' ') {
            continue; // an expectation
        }
        writeln!(played, "{line}")?;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let outcome = command(&mut scheduler, line).with_context(|| format!("line {number}"))?;
        for line in outcome {
            writeln!(played, "    {line}")?;
        }
        if let Some(scheduler) = &scheduler {
            scheduler.sanity_check().with_context(|| format!("after line {number}"))?;
            let now = scheduler.snapshot().at;
            if let Some(due) = scheduler.poll_deadline().filter(|deadline| *deadline <= now) {
                bail!("after line {number}, something that was due at {due:?} stays due");
            }
        }
    }
    Ok(played)
}

fn command(scheduler: &mut Option<Scheduler>, line: &str) -> Result<Vec<String>> {
    let line = Line::parse(line)?;
    if line.words[0] == "node" {
        return match Scheduler::new(config(&line)?) {
            Ok(new) => {
                *scheduler = Some(new);
                Ok(Vec::new())
            }
            Err(error) => Ok(vec![format!("error: {error}")]),
        };
    }
    let scheduler = scheduler.as_mut().context("the first line must say 'node'")?;
    let now = Time(0).after(span(line.words[0])?);
    let verb = *line.words.get(1).context("a time, but nothing that happens")?;
    if verb == "show" {
        return Ok(show(scheduler, now));
    }
    scheduler.handle(event(verb, &line)?, now);
    Ok(std::iter::from_fn(|| scheduler.poll_action()).map(|action| describe(&action)).collect())
}

/// Words, and `key=value` pairs after them.
struct Line<'a> {
    words: Vec<&'a str>,
    keys: Vec<(&'a str, &'a str)>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self> {
        let (keys, words): (Vec<_>, Vec<_>) =
            line.split_whitespace().partition(|word| word.contains('='));
        let keys = keys.iter().filter_map(|key| key.split_once('=')).collect();
        if words.is_empty() {
            bail!("no word in it");
        }
        Ok(Line { words, keys })
    }

    fn key(&self, name: &str) -> Option<&'a str> {
        self.keys.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        self.key(name).map_or(Ok(default), |value| Ok(value.parse()?))
    }
}

fn span(text: &str) -> Result<Duration> {
    let split = text.find(|c: char| c.is_alphabetic()).context("a time needs s or ms")?;
    let value = text[..split].parse()?;
    match &text[split..] {
        "s" => Ok(Duration::from_secs(value)),
        "ms" => Ok(Duration::from_millis(value)),
        unit => bail!("unknown unit {unit}"),
    }
}

fn config(line: &Line<'_>) -> Result<Config> {
    for (key, _) in &line.keys {
        let known =
            ["gpus", "memory", "policy", "quantum", "epoch", "backfill", "bypass", "patience"];
        let more =
            ["settle", "expect", "start-count", "drain", "late", "budget", "share", "headroom"];
        let tenancy = ["tenants", "queues", "fair", "credit", "distances", "links"];
        if !known.contains(key) && !more.contains(key) && !tenancy.contains(key) {
            bail!("unknown key {key}");
        }
    }
    let policy = policy(line.key("policy").unwrap_or("gpu-affinity"))?;
    let count = usize::try_from(line.number("gpus", 1)?)?;
    let mut config =
        Config::new(vec![GpuConfig { memory: line.number("memory", 100)? }; count], policy);
    config.first_epoch = Epoch(line.number("epoch", 1)?);
    config.max_bypass = u32::try_from(line.number("bypass", 16)?)?;
    config.estimator.start_count = u32::try_from(line.number("start-count", 10)?)?;
    if let Some(quantum) = line.key("quantum") {
        config.quantum = span(quantum)?;
    }
    if let Some(drain) = line.key("drain") {
        config.drain = span(drain)?;
    }
    config.memory.headroom = vec![line.number("headroom", 0)?; count];
    config.memory.host_budget = line.number("budget", u64::MAX)?;
    if let Some(share) = line.key("share") {
        config.switch_share = share.parse()?;
    }
    if let Some(late) = line.key("late") {
        config.memory.late = span(late)?;
    }
    if let Some(patience) = line.key("patience") {
        config.max_bypass_time = span(patience)?;
    }
    if line.key("backfill") == Some("off") {
        config.backfill = Backfill::Off;
    }
    if let Some(settle) = line.key("settle") {
        config.settle.until = Time(0).after(span(settle)?);
    }
    let listed = |key| line.key(key).map_or(Vec::new(), |list| list.split(';').collect());
    config.tenants = listed("tenants").into_iter().map(tenant).collect::<Result<_>>()?;
    config.queues = listed("queues").into_iter().map(queue).collect::<Result<_>>()?;
    if let Some(half_life) = line.key("fair") {
        let credit = line.key("credit").map(span).transpose()?.unwrap_or_default();
        config.fair_share = Some(FairShare { half_life: span(half_life)?, credit });
    }
    let row = |row: &str| row.split(',').map(|distance| Ok(distance.parse()?)).collect();
    config.topology.distances =
        listed("distances").into_iter().map(row).collect::<Result<Vec<Vec<u32>>>>()?;
    if let Some(links) = line.key("links") {
        let links = links.split(',').map(str::parse).collect::<Result<_, _>>();
        config.topology.links = links?;
    }
    // expect=CLIENT/EPOCH/GPU:ROOM,GPU:ROOM;…
    for expected in line.key("expect").iter().flat_map(|list| list.split(';')) {
        let mut parts = expected.split('/');
        let mut part = || parts.next().context("expect=CLIENT/EPOCH/GPU:ROOM");
        let client = ClientId(part()?.parse()?);
        let lease = Some(part()?.parse()?).filter(|epoch| *epoch != 0).map(Epoch);
        let held = Held { bound: rooms(part()?)?, lease };
        config.settle.expected.push(Expected { client, held, gang: None });
    }
    Ok(config)
}

fn policy(name: &str) -> Result<Policy> {
    Ok(match name {
        "simple" => Policy::Simple,
        "gpu-sharing" => Policy::GpuSharing,
        "gpu-affinity" => Policy::GpuAffinity,
        other => bail!("unknown policy {other}"),
    })
}

/// `NAME:GUARANTEE[/LIMIT][*WEIGHT]`
fn tenant(text: &str) -> Result<TenantConfig> {
    let (name, rest) = text.split_once(':').context("NAME:GUARANTEE[/LIMIT][*WEIGHT]")?;
    let (rest, weight) = rest.split_once('*').map_or((rest, None), |(a, b)| (a, Some(b)));
    let (guarantee, limit) = rest.split_once('/').map_or((rest, None), |(a, b)| (a, Some(b)));
    Ok(TenantConfig {
        guarantee: guarantee.parse()?,
        limit: limit.map(str::parse).transpose()?,
        weight: weight.map_or(Ok(1), str::parse)?,
        ..TenantConfig::new(name)
    })
}

/// `NAME[@PRIORITY][/GPUS][#CLIENTS][:POLICY]`
fn queue(text: &str) -> Result<QueueConfig> {
    let cut = |text: &'_ str, at: char| -> (String, Option<String>) {
        let parts = text.split_once(at);
        parts.map_or((text.to_owned(), None), |(a, b)| (a.to_owned(), Some(b.to_owned())))
    };
    let (rest, named) = cut(text, ':');
    let (rest, clients) = cut(&rest, '#');
    let (rest, gpus) = cut(&rest, '/');
    let (name, priority) = cut(&rest, '@');
    let number = priority.map_or(Ok(0), |number| number.parse())?;
    Ok(QueueConfig {
        priority: Priority::new(number).context("a priority is from -100 to 100")?,
        policy: named.as_deref().map(policy).transpose()?,
        max_gpus: gpus.map(|number| number.parse()).transpose()?,
        max_clients: clients.map(|number| number.parse()).transpose()?,
        ..QueueConfig::new(name)
    })
}

fn rooms(text: &str) -> Result<Vec<(Gpu, Room)>> {
    let room = |item: &str| {
        let numbers: Vec<u64> = item.split(':').map(str::parse).collect::<Result<_, _>>()?;
        let (gpu, room) = match numbers[..] {
            [gpu, fixed] => (gpu, Room { fixed, ..Room::default() }),
            [gpu, fixed, claimed, resident] => (gpu, Room { fixed, claimed, resident }),
            _ => bail!("{item} is neither GPU:FIXED nor GPU:FIXED:CLAIMED:RESIDENT"),
        };
        Ok((Gpu(u32::try_from(gpu)?), room))
    };
    text.split(',').map(room).collect()
}

fn event(verb: &str, line: &Line<'_>) -> Result<Event> {
    if verb == "timer" {
        return Ok(Event::Timer);
    }
    let number = |at: usize| -> Result<u64> {
        Ok(line.words.get(at).with_context(|| format!("{verb} needs more numbers"))?.parse()?)
    };
    let gpu = |at: usize| -> Result<Gpu> { Ok(Gpu(u32::try_from(number(at)?)?)) };
    let client = ClientId(number(2)?);
    Ok(match verb {
        "join" => {
            let eligible = match line.key("on") {
                Some("none") => Eligible::Only(Vec::new()),
                Some(list) => Eligible::Only(
                    list.split(',').map(|gpu| Ok(Gpu(gpu.parse()?))).collect::<Result<_>>()?,
                ),
                None => Eligible::All,
            };
            let lease = line.key("lease").map(str::parse).transpose()?.map(Epoch);
            let bound = line.key("held").map(rooms).transpose()?;
            let held = (bound.is_some() || lease.is_some())
                .then(|| Held { bound: bound.unwrap_or_default(), lease });
            let gpus = u32::try_from(line.number("gpus", 1)?)?;
            let priority = line.key("prio").map_or(Ok(0), str::parse)?;
            let priority = Priority::new(priority).context("a priority is from -100 to 100")?;
            let name = |key| line.key(key).unwrap_or_default().to_owned();
            let (tenant, queue) = (name("tenant"), name("queue"));
            let gang = line.key("gang").map(|text| {
                let (name, size) = text.split_once(':').context("gang=NAME:SIZE")?;
                Ok::<_, anyhow::Error>(gang::GangSpec { name: name.into(), size: size.parse()? })
            });
            let gang = gang.transpose()?;
            let memory_limit = line.key("limit").map(str::parse).transpose()?;
            let base = ClientSpec { gpus, eligible, held, priority, ..ClientSpec::default() };
            let unbound = line.key("bound") == Some("no");
            let spec = ClientSpec { unbound, tenant, queue, gang, memory_limit, ..base };
            Event::Join { client, spec }
        }
        "bind" => Event::Bind { client },
        "acquire" => Event::Acquire { client, expected: line.key("for").map(span).transpose()? },
        "cancel" => Event::Cancel { client },
        "release" => {
            let busy = line.key("busy").map(span).transpose()?;
            Event::Release { client, epoch: Epoch(number(3)?), busy }
        }
        "leave" => Event::Leave { client },
        "room" => Event::RoomRequest { client, seq: number(3)?, gpu: gpu(4)?, bytes: number(5)? },
        "grown" => Event::Grown { client, seq: number(3)?, gpu: gpu(4)?, bytes: number(5)? },
        "room-cancel" => Event::RoomCancel { client, seq: number(3)? },
        "room-return" => Event::RoomReturn { client, gpu: gpu(3)?, bytes: number(4)? },
        "claim" => Event::Claim { client, seq: number(3)?, gpu: gpu(4)?, bytes: number(5)? },
        "claim-return" => {
            Event::ClaimReturn { client, gpu: gpu(3)?, bytes: number(4)?, resident: number(5)? }
        }
        "evicted" => {
            let stays = line.words.get(5).is_some_and(|word| *word == "stays");
            let rest = if stays { Rest::Stays } else { Rest::Comes };
            Event::Evicted { client, gpu: gpu(3)?, bytes: number(4)?, rest }
        }
        "ready" => Event::Ready { client, epoch: Epoch(number(3)?) },
        "used" => Event::Used { gpu: gpu(2)?, bytes: number(3)? },
        "short" => Event::Short { client, gpu: gpu(3)?, bytes: number(4)? },
        "pinned" => Event::Pinned { client, gpu: gpu(3)?, movable: false },
        "unpinned" => Event::Pinned { client, gpu: gpu(3)?, movable: true },
        "away" => Event::Away { client },
        "back" => {
            Event::Back { client, lease: line.key("lease").map(str::parse).transpose()?.map(Epoch) }
        }
        other => bail!("nothing is called {other}"),
    })
}

fn list(gpus: &[Gpu]) -> String {
    gpus.iter().map(|gpu| gpu.0.to_string()).collect::<Vec<_>>().join(",")
}

fn describe(action: &Action) -> String {
    match action {
        Action::Bound { client, gpus } => format!("{} bound to {}", client.0, list(gpus)),
        Action::GangReport(report) => format!("report {}", report.seq),
        Action::Refused { client, reason } => format!("{} refused: {reason}", client.0),
        Action::Grant { client, epoch, gpus, .. } => {
            format!("{} granted {} (epoch {})", client.0, list(gpus), epoch.0)
        }
        Action::Wanted { client, epoch } => format!("{} wanted (epoch {})", client.0, epoch.0),
        Action::Overtaken { client, epoch } => {
            format!("{} overtaken (epoch {})", client.0, epoch.0)
        }
        Action::Recall { client, epoch } => format!("{} recalled (epoch {})", client.0, epoch.0),
        Action::Room { client, seq, verdict } => {
            let verdict = match verdict {
                RoomVerdict::Granted => "granted".to_owned(),
                RoomVerdict::Denied(reason) => format!("denied: {reason}"),
                RoomVerdict::Waiting { missing, holders, obstacle } => {
                    let holders: Vec<String> = holders
                        .iter()
                        .map(|(client, bytes)| format!("{}:{bytes}", client.0))
                        .collect();
                    let until = match obstacle {
                        Obstacle::Moving => " (until moved)",
                        Obstacle::Lease => " (until released)",
                        Obstacle::Claims => " (until unclaimed)",
                        Obstacle::Fixed => "",
                        Obstacle::Restart => " (until settled)",
                    };
                    format!("waits: {missing} missing, held by {}{until}", holders.join(" "))
                }
            };
            format!("{} room {seq} {verdict}", client.0)
        }
        Action::Evict { client, gpu, bytes } => format!("{} evict {} {bytes}", client.0, gpu.0),
        Action::Credit { client, gpu, bytes } => format!("{} credit {} {bytes}", client.0, gpu.0),
        Action::Withdraw { client, gpu } => format!("{} withdraw {}", client.0, gpu.0),
        Action::Stay { client, gpu } => format!("{} stay {}", client.0, gpu.0),
        Action::Arena { client, bytes } => format!("{} arena {bytes}", client.0),
        Action::Blocked { client, gpu, by, bytes } => {
            format!("{} blocked on {} by {}: {bytes}", client.0, gpu.0, by.0)
        }
    }
}

/// Paged memory is shown where there is some.
fn paged(room: Room) -> String {
    match room.claimed {
        0 => String::new(),
        claimed => format!(" claimed {claimed} resident {}", room.resident),
    }
}

/// Times are shown as seconds with three digits.
fn seconds(time: Duration) -> String {
    format!("{:.3}s", time.as_secs_f64())
}

fn show(scheduler: &Scheduler, now: Time) -> Vec<String> {
    let snapshot = scheduler.snapshot_at(now);
    let mut lines = Vec::new();
    for gpu in &snapshot.gpus {
        let holders: Vec<String> = gpu.holders.iter().map(|client| client.0.to_string()).collect();
        lines.push(format!(
            "gpu {}: holders [{}] room {}/{}{}{} waiting {} held {} grants {}{}{}",
            gpu.gpu.0,
            holders.join(" "),
            gpu.room,
            gpu.memory,
            paged(gpu.total),
            match (gpu.headroom, gpu.headroom_taken) {
                (0, _) => String::new(),
                (kept, taken) => format!(" headroom {kept} taken {taken}"),
            },
            gpu.room_waiting,
            seconds(gpu.held),
            gpu.grants,
            if gpu.stuck { " stuck" } else { "" },
            if gpu.settling { " settling" } else { "" },
        ));
    }
    for client in &snapshot.clients {
        lines.push(format!(
            "client {}: {:?} since {} gpus [{}]{}{}{}{} grants {} waited {} held {}",
            client.client.0,
            client.state,
            seconds(client.since.since(Time(0))),
            list(&client.gpus),
            if client.bound { " bound" } else { "" },
            client.epoch.map_or(String::new(), |epoch| format!(" epoch {}", epoch.0)),
            client.position.map_or(String::new(), |position| format!(" position {position}")),
            client.room.iter().map(|(_, room)| paged(*room)).collect::<String>(),
            client.grants,
            seconds(client.waited),
            seconds(client.held),
        ));
    }
    for kept in &snapshot.reservations {
        lines.push(format!(
            "kept {} for {}: expected {}{} bypassed {}",
            list(&kept.gpus),
            kept.client.0,
            match kept.expected {
                Time(u64::MAX) => "unknown".to_owned(),
                expected => seconds(expected.since(Time(0))),
            },
            kept.promised
                .map_or(String::new(), |at| format!(" promised {}", seconds(at.since(Time(0))))),
            kept.bypassed,
        ));
    }
    for tenant in snapshot.tenants.iter().filter(|tenant| !tenant.name.is_empty()) {
        lines
            .push(format!("tenant {}: holds {} of {}", tenant.name, tenant.held, tenant.guarantee));
    }
    for queue in snapshot.queues.iter().filter(|queue| !queue.name.is_empty()) {
        lines.push(format!("queue {}: {} clients hold {}", queue.name, queue.clients, queue.held));
    }
    let Recalls { quantum, priority, quota, promise, gang } = snapshot.recalls;
    if priority + quota + promise > 0 {
        lines.push(format!(
            "recalls: quantum {quantum} priority {priority} quota {quota} promise {promise}"
        ));
    }
    if gang > 0 {
        lines.push(format!("recalls for gangs: {gang}"));
    }
    for gang in scheduler.gangs() {
        let members: Vec<String> = gang.members.iter().map(|client| client.0.to_string()).collect();
        let (members, round, stage) = (members.join(" "), gang.round.0, gang.stage);
        lines.push(format!("{}: [{members}] of {} round {round} {stage:?}", gang.name, gang.size));
    }
    if let Some(deadline) = scheduler.poll_deadline() {
        lines.push(format!("deadline {}", seconds(deadline.since(Time(0)))));
    }
    lines
}
