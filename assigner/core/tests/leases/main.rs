//! The lease protocol between an assigner and its clients, with the real scheduler, in every order of events.

mod assigner;
mod client;
#[path = "../gangs/graph.rs"]
mod graph;
mod model;
