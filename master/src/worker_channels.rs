//! Connections to workers, kept for the next request.

use firesteel_proto::channel::{self, ConnectError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::transport::Channel;

/// More are not kept; a connection that is dropped is made again.
const MAX_CHANNELS: usize = 256;

/// Channels by `HOST:PORT`. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct WorkerChannels {
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl WorkerChannels {
    /// A kept channel, or a new connection.
    pub async fn get(&self, address: &str) -> Result<Channel, ConnectError> {
        let kept = self.channels.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
        if let Some(channel) = kept {
            return Ok(channel);
        }
        let channel = channel::connect(address).await?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// After a failure: the next request connects anew, and so learns why.
    pub fn forget(&self, address: &str) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
    }
}
