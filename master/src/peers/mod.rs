//! What masters say to each other, on a port of their own.
//!
//! ```text
//! consensus ──Transport──► network ═══ Peers (gRPC) ═══► service ──PeerInbox──► consensus
//! ```

pub mod addresses;
pub mod artifacts;
pub mod network;
pub mod service;
mod wire;
