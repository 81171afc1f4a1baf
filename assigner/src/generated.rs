//! The gRPC services, as generated from `acb.proto`; their messages are those of [`acb_wire`].
#![allow(missing_docs, unreachable_pub, clippy::all)]

include!("generated/acb.v1.rs");
