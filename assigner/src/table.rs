//! The table of `gpu_assigner status`.
//!
//! Owns its look. Does not own what is in it, nor where it is printed.

use acb_wire::v1::{ClientState, ClientStatus, GangStage, GpuStatus, NodeStatus};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};

/// Whether colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// A terminal that wants them.
    Coloured,
    /// Plain text.
    Plain,
}

/// The tables of all nodes.
pub fn nodes(nodes: &[NodeStatus], paint: Paint) -> String {
    nodes.iter().map(|node| one(node, paint)).collect::<Vec<_>>().join("\n")
}

fn one(node: &NodeStatus, paint: Paint) -> String {
    let mut text = format!(
        "{}: {}, policy {}, quantum {}, up {}",
        node.node,
        node.role,
        node.policy,
        span_ms(node.quantum_ms),
        span_ms(node.uptime_s * 1000),
    );
    if !node.job.is_empty() {
        text.push_str(&format!(", job {}", node.job));
    }
    if node.restarts > 0 {
        text.push_str(&format!(", {} restarts", node.restarts));
    }
    text.push('\n');
    if !node.controller.is_empty() {
        text.push_str(&format!("controller: {}\n", node.controller));
    }
    for note in &node.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    if node.gpus.is_empty() {
        text.push_str("no GPU\n");
    } else {
        text.push_str(&format!("{}\n", gpus(node, paint)));
    }
    for gang in &node.gangs {
        let members: Vec<String> = gang.members.iter().map(|member| member.to_string()).collect();
        text.push_str(&format!(
            "gang {}: {}, {} of {} members here (clients {})\n",
            gang.gang,
            stage(gang.stage()),
            members.len(),
            gang.size,
            members.join(", "),
        ));
    }
    if node.clients.is_empty() {
        text.push_str("no clients\n");
    } else {
        text.push_str(&format!("{}\n", clients(&node.clients, paint)));
        if let Some(table) = rights(&node.clients, paint) {
            text.push_str(&format!("{table}\n"));
        }
        text.push_str(&pinned(&node.clients));
    }
    text
}

/// How far a gang is, in a word.
pub fn stage(stage: GangStage) -> &'static str {
    match stage {
        GangStage::Unspecified => "unspecified",
        GangStage::Out => "waiting",
        GangStage::Keeping => "keeping",
        GangStage::Reachable => "reachable",
        GangStage::Kept => "kept",
        GangStage::Holding => "holding",
        GangStage::Ending => "ending",
    }
}

fn gpus(node: &NodeStatus, paint: Paint) -> Table {
    let heads =
        ["GPU", "NAME", "MEMORY", "KEPT", "FIXED", "PAGED", "HERE", "HELD BY", "HELD", "GRANTS"];
    let mut table = table(&heads, paint);
    for gpu in &node.gpus {
        let own = |of: fn(&ClientStatus) -> u64| -> u64 {
            let bound = node.clients.iter().filter(|client| client.gpus == [gpu.index]);
            bound.map(of).sum()
        };
        // What clients of several GPUs have here is not told apart; then all that is known is the sum.
        let resident = own(|client| client.resident).min(gpu.room);
        let row = vec![
            Cell::new(gpu.index),
            Cell::new(&gpu.name),
            number(short(gpu.memory)),
            number(short(gpu.headroom)),
            number(short(gpu.room - resident)),
            number(short(gpu.claimed)),
            number(short(resident)),
            Cell::new(holders(gpu, &node.clients)),
            number(share(gpu.held_ns, node.uptime_s)),
            number(gpu.grants.to_string()),
        ];
        table.add_row(row);
    }
    table
}

fn holders(gpu: &GpuStatus, clients: &[ClientStatus]) -> String {
    let name = |holder: &u64| match clients.iter().find(|client| client.client == *holder) {
        Some(client) => format!("{} ({})", client.program, client.pid),
        None => format!("client {holder}"),
    };
    match gpu.holders.is_empty() {
        true => "-".to_owned(),
        false => gpu.holders.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

fn clients(clients: &[ClientStatus], paint: Paint) -> Table {
    let heads = [
        "ID", "PROGRAM", "TASK", "STATE", "SINCE", "GPU", "PAGED", "HERE", "LIMIT", "GRANTS",
        "WAITED", "HELD",
    ];
    let mut table = table(&heads, paint);
    for client in clients {
        let gpus: Vec<String> = client.gpus.iter().map(u32::to_string).collect();
        let kind = if client.manual { ", manual" } else { "" };
        let task = match client.step.is_empty() {
            true => "-".to_owned(),
            false => format!("{}.{}", client.step, client.rank),
        };
        let row = vec![
            number(client.client.to_string()),
            Cell::new(format!("{} ({}{kind})", client.program, client.pid)),
            Cell::new(task),
            state(client, paint),
            number(span_ms(client.state_ms)),
            Cell::new(or_dash(gpus.join(","))),
            number(short(client.claimed)),
            number(short(client.room)),
            number(short(client.memory_limit)),
            number(client.grants.to_string()),
            number(span_ms(client.wait_ns / 1_000_000)),
            number(span_ms(client.held_ns / 1_000_000)),
        ];
        table.add_row(row);
    }
    table
}

/// Priorities, queues and tenants: a table of its own, since the other one is as wide as a terminal; with the columns
/// that some client uses, and the clients that use any.
fn rights(clients: &[ClientStatus], paint: Paint) -> Option<Table> {
    let has = |priority, queue: &str, tenant: &str| {
        [priority != 0, !queue.is_empty(), !tenant.is_empty()]
    };
    let of = |client: &ClientStatus| has(client.priority, &client.queue, &client.tenant);
    let used: Vec<bool> = (0..3).map(|at| clients.iter().any(|client| of(client)[at])).collect();
    if !used.contains(&true) {
        return None;
    }
    let columns = ["PRIORITY", "QUEUE", "TENANT"];
    let shown = columns.iter().zip(&used).filter(|(_, used)| **used).map(|(head, _)| *head);
    let heads: Vec<&str> = ["ID", "PROGRAM"].into_iter().chain(shown).collect();
    let mut table = table(&heads, paint);
    for client in clients.iter().filter(|client| of(client).contains(&true)) {
        let cells = [
            number(client.priority.to_string()),
            Cell::new(or_dash(client.queue.clone())),
            Cell::new(or_dash(client.tenant.clone())),
        ];
        let shown = cells.into_iter().zip(&used).filter(|(_, used)| **used).map(|(cell, _)| cell);
        let program = Cell::new(format!("{} ({})", client.program, client.pid));
        let first = [number(client.client.to_string()), program];
        table.add_row(first.into_iter().chain(shown).collect::<Vec<Cell>>());
    }
    Some(table)
}

/// Why memory stays where it is, a line for each program of which it does.
fn pinned(clients: &[ClientStatus]) -> String {
    let lines = clients.iter().flat_map(|client| {
        client.memory.iter().filter(|memory| !memory.pinned.is_empty()).map(|memory| {
            let (program, pid) = (&client.program, client.pid);
            format!("{program} ({pid}) stays on its GPU: {}\n", memory.pinned)
        })
    });
    lines.collect()
}

fn table(heads: &[&str], paint: Paint) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    match paint {
        Paint::Coloured => table.enforce_styling(),
        Paint::Plain => table.force_no_tty(),
    };
    let head = heads.iter().map(|head| match paint {
        Paint::Coloured => Cell::new(head).add_attribute(Attribute::Bold),
        Paint::Plain => Cell::new(head),
    });
    table.set_header(head.collect::<Vec<_>>());
    table.column_iter_mut().for_each(|column| _ = column.set_padding((0, 1)));
    table
}

fn state(client: &ClientStatus, paint: Paint) -> Cell {
    let (text, colour) = match client.state() {
        ClientState::Unspecified => ("?", None),
        ClientState::Idle => ("idle", None),
        ClientState::Waiting => ("waiting", Some(Color::Yellow)),
        ClientState::Holding => ("holding", Some(Color::Green)),
        ClientState::Recalled => ("recalled", Some(Color::Magenta)),
        ClientState::WaitingForRoom => ("no memory", Some(Color::Red)),
    };
    let text = match client.queue_position {
        0 => text.to_owned(),
        position => format!("{text} #{position}"),
    };
    match (colour, paint) {
        (Some(colour), Paint::Coloured) => Cell::new(text).fg(colour),
        _ => Cell::new(text),
    }
}

fn number(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Bytes in four characters or so, with the units of `--mem`.
fn short(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    match bytes {
        0 => "-".to_owned(),
        _ if mib < 0.95 => format!("{}K", bytes.div_ceil(1024)),
        _ if mib < 1023.5 => format!("{mib:.0}M"),
        _ if mib < 102_400.0 => format!("{:.1}G", mib / 1024.0),
        _ => format!("{:.0}G", mib / 1024.0),
    }
}

fn share(ns: u64, of_seconds: u64) -> String {
    let of = of_seconds.max(1) as f64 * 1e9;
    format!("{:.0} %", (100.0 * ns as f64 / of).min(100.0))
}

/// A span for people: 12 ms, 3.4 s, 5 min 6 s, 7 h 8 min.
fn span_ms(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms} ms"),
        1_000..=59_999 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..=3_599_999 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_tables_have_no_escapes() {
        let client = ClientStatus {
            client: 3,
            pid: 77,
            program: "train".into(),
            state: ClientState::Holding.into(),
            ..ClientStatus::default()
        };
        let gpu = GpuStatus { holders: vec![3], memory: 80 << 30, ..GpuStatus::default() };
        let node = NodeStatus {
            node: "n1".into(),
            gpus: vec![gpu],
            clients: vec![client],
            notes: vec!["recovering".into()],
            ..NodeStatus::default()
        };
        let text = nodes(std::slice::from_ref(&node), Paint::Plain);
        assert!(!text.contains('\x1b'), "{text}");
        for word in ["train (77)", "holding", "80.0G", "note: recovering"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(nodes(&[node], Paint::Coloured).contains('\x1b'));
    }

    #[test]
    fn priorities_queues_and_tenants_are_shown_where_they_are_used() {
        let plain = ClientStatus { client: 1, program: "a".into(), ..ClientStatus::default() };
        let shown = |clients: Vec<ClientStatus>| {
            nodes(&[NodeStatus { clients, ..NodeStatus::default() }], Paint::Plain)
        };
        let text = shown(vec![plain.clone()]);
        assert!(["PRIORITY", "QUEUE", "TENANT"].iter().all(|head| !text.contains(head)), "{text}");
        let urgent = ClientStatus { client: 2, priority: -7, ..plain.clone() };
        let text = shown(vec![plain.clone(), urgent.clone()]);
        assert!(text.contains("PRIORITY") && text.contains("-7"), "{text}");
        assert!(!text.contains("QUEUE") && !text.contains("TENANT"), "{text}");
        let all = ClientStatus { queue: "fast".into(), tenant: "physics".into(), ..urgent };
        let text = shown(vec![plain, all]);
        for word in ["PRIORITY", "QUEUE", "fast", "TENANT", "physics"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        let width = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(width <= 102, "{width} columns:\n{text}");
    }

    #[test]
    fn a_full_table_fits_a_page() {
        let client = |state: ClientState| ClientStatus {
            client: 123,
            pid: 1_234_567,
            program: "python3".into(),
            step: "12".into(),
            rank: 12,
            state: state.into(),
            state_ms: 12_300,
            queue_position: 2,
            gpus: vec![0],
            room: 40 << 30,
            claimed: 75 << 30,
            resident: 39 << 30,
            memory_limit: 80 << 30,
            grants: 1234,
            wait_ns: 56_700_000_000,
            held_ns: 56_700_000_000,
            memory: vec![acb_wire::v1::MemoryReport {
                pinned: "shares GPU memory by IPC".into(),
                ..Default::default()
            }],
            ..ClientStatus::default()
        };
        let gpu = GpuStatus {
            name: "NVIDIA H100 80GB HBM3".into(),
            uuid: "GPU-01234567-89ab-cdef-0123-456789abcdef".into(),
            holders: vec![123],
            memory: 80 << 30,
            headroom: 512 << 20,
            room: 79 << 30,
            claimed: 300 << 30,
            grants: 123_456,
            ..GpuStatus::default()
        };
        let node = NodeStatus {
            gpus: vec![gpu],
            clients: vec![client(ClientState::Waiting), client(ClientState::WaitingForRoom)],
            ..NodeStatus::default()
        };
        let text = nodes(&[node], Paint::Plain);
        let width = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(width <= 102, "{width} columns:\n{text}");
        assert!(
            text.contains("python3 (1234567) stays on its GPU: shares GPU memory by IPC"),
            "{text}"
        );
    }

    #[test]
    fn spans_are_readable() {
        let spans =
            [(12, "12 ms"), (3400, "3.4 s"), (306_000, "5 min 6 s"), (25_680_000, "7 h 8 min")];
        for (ms, text) in spans {
            assert_eq!(span_ms(ms), text);
        }
    }
}
