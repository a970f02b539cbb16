//! The seam between the group's loop and the network.

use raft::eraftpb::Message;

/// The member that a message is for cannot be reached now. Raft sends again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the member cannot be reached")]
pub struct Unreachable;

/// Hands messages to other members. Called on the loop's thread: it must not block.
pub trait Transport: Send + 'static {
    fn send(&mut self, message: Message) -> Result<(), Unreachable>;
}

/// For a group whose only member is this one: there is nobody to reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, _: Message) -> Result<(), Unreachable> {
        Err(Unreachable)
    }
}
