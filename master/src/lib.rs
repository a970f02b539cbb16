//! The master: a Raft group's member that schedules while it leads, its gRPC services and its web page.
//!
//! ```text
//! services ──commands──► consensus ──Published──► leader (core::schedule, silence) ──commands──► consensus
//!    ▲  └── soft (heartbeats, progress)                 │
//!    └────────────── Published, to every stream ◄───────┘
//! ```

pub mod artifacts;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod consensus;
pub mod daemon;
mod formation;
mod leader;
mod membership;
pub mod peers;
mod reports;
pub mod services;
pub mod soft;
pub mod status;
pub mod web;
mod worker_channels;
