//! The table of `gpu_assigner status`.
//!
//! Owns its look. Does not own what is in it, nor where it is printed.

use acb_wire::v1::{ClientState, ClientStatus, GpuStatus, NodeStatus};
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
    if node.clients.is_empty() {
        text.push_str("no clients\n");
    } else {
        text.push_str(&format!("{}\n", clients(&node.clients, paint)));
    }
    text
}

fn gpus(node: &NodeStatus, paint: Paint) -> Table {
    let mut table =
        table(&["GPU", "UUID", "NAME", "MEMORY", "PROMISED", "HELD BY", "HELD", "GRANTS"], paint);
    for gpu in &node.gpus {
        let row = vec![
            Cell::new(gpu.index),
            Cell::new(&gpu.uuid),
            Cell::new(&gpu.name),
            number(bytes(gpu.memory)),
            number(bytes(gpu.room)),
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
        "CLIENT", "PID", "PROGRAM", "STEP", "RANK", "STATE", "SINCE", "QUEUE", "GPU", "ROOM",
        "GRANTS", "WAITED", "HELD",
    ];
    let mut table = table(&heads, paint);
    for client in clients {
        let gpus: Vec<String> = client.gpus.iter().map(u32::to_string).collect();
        let row = vec![
            number(client.client.to_string()),
            number(client.pid.to_string()),
            Cell::new(if client.manual {
                format!("{} (manual)", client.program)
            } else {
                client.program.clone()
            }),
            Cell::new(or_dash(client.step.clone())),
            number(if client.step.is_empty() { "-".to_owned() } else { client.rank.to_string() }),
            state(client, paint),
            number(span_ms(client.state_ms)),
            number(if client.queue_position == 0 {
                "-".to_owned()
            } else {
                client.queue_position.to_string()
            }),
            Cell::new(or_dash(gpus.join(","))),
            number(bytes(client.room)),
            number(client.grants.to_string()),
            number(span_ms(client.wait_ns / 1_000_000)),
            number(span_ms(client.held_ns / 1_000_000)),
        ];
        table.add_row(row);
    }
    table
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
    table
}

fn state(client: &ClientStatus, paint: Paint) -> Cell {
    let (text, colour) = match client.state() {
        ClientState::Unspecified => ("?", None),
        ClientState::Idle => ("idle", None),
        ClientState::Waiting => ("waiting", Some(Color::Yellow)),
        ClientState::Holding => ("holding", Some(Color::Green)),
        ClientState::Recalled => ("recalled", Some(Color::Magenta)),
        ClientState::WaitingForRoom => ("waiting for memory", Some(Color::Red)),
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

fn bytes(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { crate::broker::size(bytes) }
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
        for word in ["train (77)", "holding", "80.0 GiB", "note: recovering"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(nodes(&[node], Paint::Coloured).contains('\x1b'));
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
