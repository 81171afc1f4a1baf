//! `gpu_assigner status --json`: the `StatusReply` with the names of `acb.proto`.
//!
//! Owns the document that scripts read: fields are only added.

use acb_wire::v1::{
    ClientState, ClientStatus, GangStatus, GpuStatus, MemoryReport, NodeStatus, StatusReply,
};
use serde_json::{Value, json};

use crate::table;

/// One document for all nodes.
pub fn reply(reply: &StatusReply) -> Value {
    json!({ "nodes": reply.nodes.iter().map(node).collect::<Vec<_>>() })
}

fn node(node: &NodeStatus) -> Value {
    json!({
        "node": node.node,
        "role": node.role,
        "pid": node.pid,
        "address": node.address,
        "client_socket": node.client_socket,
        "policy": node.policy,
        "uptime_s": node.uptime_s,
        "gpus": node.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "clients": node.clients.iter().map(client).collect::<Vec<_>>(),
        "age_ms": node.age_ms,
        "version": node.version,
        "quantum_ms": node.quantum_ms,
        "restarts": node.restarts,
        "controller": node.controller,
        "job": node.job,
        "notes": node.notes,
        "gangs": node.gangs.iter().map(gang).collect::<Vec<_>>(),
    })
}

fn gang(gang: &GangStatus) -> Value {
    json!({
        "gang": gang.gang,
        "size": gang.size,
        "members": gang.members,
        "stage": table::stage(gang.stage()),
        "local": gang.local,
    })
}

fn gpu(gpu: &GpuStatus) -> Value {
    json!({
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory": gpu.memory,
        "room": gpu.room,
        "holders": gpu.holders,
        "held_ns": gpu.held_ns,
        "grants": gpu.grants,
        "busy_ns": gpu.busy_ns,
        "claimed": gpu.claimed,
        "switch_ns": gpu.switch_ns,
        "headroom": gpu.headroom,
        "headroom_taken": gpu.headroom_taken,
    })
}

fn client(client: &ClientStatus) -> Value {
    let state = match client.state() {
        ClientState::Unspecified => "unspecified",
        ClientState::Idle => "idle",
        ClientState::Waiting => "waiting",
        ClientState::Holding => "holding",
        ClientState::Recalled => "recalled",
        ClientState::WaitingForRoom => "waiting_for_room",
    };
    json!({
        "client": client.client,
        "pid": client.pid,
        "program": client.program,
        "step": client.step,
        "rank": client.rank,
        "state": state,
        "gpus": client.gpus,
        "epoch": client.epoch,
        "room": client.room,
        "grants": client.grants,
        "state_ms": client.state_ms,
        "wait_ns": client.wait_ns,
        "held_ns": client.held_ns,
        "queue_position": client.queue_position,
        "manual": client.manual,
        "priority": client.priority,
        "tenant": client.tenant,
        "queue": client.queue,
        "claimed": client.claimed,
        "resident": client.resident,
        "memory_limit": client.memory_limit,
        "memory": client.memory.iter().map(memory).collect::<Vec<_>>(),
    })
}

fn memory(report: &MemoryReport) -> Value {
    let fixed =
        |fixed: &acb_wire::v1::FixedMemory| json!({ "kind": fixed.kind, "bytes": fixed.bytes });
    json!({
        "device": report.device,
        "fixed": report.fixed.iter().map(fixed).collect::<Vec<_>>(),
        "pinned": report.pinned,
        "arena": report.arena,
        "paged_out": report.paged_out,
        "paged_in": report.paged_in,
        "clean": report.clean,
        "pin_in_switch_ns": report.pin_in_switch_ns,
        "lies": report.lies,
    })
}
