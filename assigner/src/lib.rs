//! The GPU assigner of slurm-acb and the launcher `agarun`.
//!
//! Owns everything between the pure scheduler ([`acb_core`]) and the outside: processes, sockets,
//! files, gRPC, NVML. The programs are `src/bin/gpu_assigner.rs` and `src/bin/agarun.rs`.
//!
//! | modules | are |
//! | --- | --- |
//! | [`cli`], [`selection`], [`settings`], [`tenancy`] | what a daemon is told |
//! | [`start`], [`control`], [`remote`], [`table`], [`json`] | the commands |
//! | [`supervise`], [`sockets`], [`pidfile`], [`worker`] | the daemon's processes |
//! | [`broker`], [`clients`], [`channel`], [`outbox`], [`process`], [`state`], [`inventory`], [`topology`] | the worker's first thread: clients |
//! | [`outside`], [`commands`], [`grpc`], [`peer`], [`node`], [`controller`], [`executor`], [`tls`], [`statistics`], [`comment`] | its second thread: tools and other nodes |
//! | [`simulate`] | whole clusters in virtual time, around [`acb_sim`] |
//! | [`launch`] | `agarun` |

pub mod broker;
pub mod cautions;
pub mod channel;
pub mod cli;
pub mod clients;
pub mod commands;
pub mod comment;
pub mod control;
pub mod controller;
pub mod executor;
pub mod files;
pub mod gangs;
pub mod generated;
pub mod grpc;
mod host;
pub mod inventory;
pub mod json;
pub mod launch;
pub mod meter;
pub mod node;
pub mod outbox;
pub mod output;
pub mod outside;
pub mod peer;
pub mod pidfile;
pub mod process;
pub mod remote;
pub mod selection;
pub mod settings;
pub mod simulate;
pub mod sockets;
pub mod start;
pub mod state;
pub mod statistics;
pub mod strangers;
pub mod supervise;
pub mod sys;
pub mod table;
pub mod tenancy;
pub mod tls;
pub mod topology;
pub mod vigil;
pub mod worker;
