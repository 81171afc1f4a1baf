//! The values that decide which bodies of a graph's conditional nodes run. Kernels set them while they run; so they lie apart from
//! what the lock protects.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::graph::Graph;
use crate::handles::Handle;

/// The number that programs know one by.
pub(crate) type ConditionId = u64;

/// What numbers begin with, so that no other number is taken for one.
const MARK: u64 = 0x00c0 << 48;

struct Condition {
    /// Where its node must be, or in a part of it.
    graph: Handle<Graph>,
    /// What it is at the beginning of each run; none: what it was.
    default: Option<u32>,
    value: u32,
    has_node: bool,
}

fn all() -> MutexGuard<'static, HashMap<ConditionId, Condition>> {
    static ALL: LazyLock<Mutex<HashMap<ConditionId, Condition>>> = LazyLock::new(Mutex::default);
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new one, for a node in a graph.
pub(crate) fn make(graph: Handle<Graph>, id: u64, default: Option<u32>) -> ConditionId {
    let (value, has_node) = (0, false);
    all().insert(MARK | id, Condition { graph, default, value, has_node });
    MARK | id
}

/// The graph that it was made for.
pub(crate) fn graph_of(id: ConditionId) -> Option<Handle<Graph>> {
    all().get(&id).map(|condition| condition.graph)
}

/// A node looks at it.
pub(crate) fn take(id: ConditionId) {
    if let Some(condition) = all().get_mut(&id) {
        condition.has_node = true;
    }
}

/// Whether a graph has one that no node looks at.
pub(crate) fn is_loose(graph: Handle<Graph>) -> bool {
    all().values().any(|condition| condition.graph == graph && !condition.has_node)
}

/// Whether there is such a one.
pub(crate) fn exists(id: ConditionId) -> bool {
    all().contains_key(&id)
}

/// Its value.
pub(crate) fn value(id: ConditionId) -> u32 {
    all().get(&id).map_or(0, |condition| condition.value)
}

/// What kernels call `cudaGraphSetConditional`.
pub(crate) fn set(id: ConditionId, value: u32) {
    if let Some(condition) = all().get_mut(&id) {
        condition.value = value;
    }
}

/// A run begins.
pub(crate) fn begin(ids: &[ConditionId]) {
    let mut all = all();
    for id in ids {
        if let Some(condition) = all.get_mut(id) {
            condition.value = condition.default.unwrap_or(condition.value);
        }
    }
}
