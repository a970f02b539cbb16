//! Reads what the process was started with from the descriptors that its parent left open (see `common::launch`).

use rustix::fd::{FromRawFd, OwnedFd};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};

/// A launch document is small; anything longer is not one.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("descriptor {fd} is not open: firesteel-engine is started by a worker or by submit, not by hand")]
    NotOpen { fd: i32 },
    #[error("cannot read the launch document: {0}")]
    Read(#[from] io::Error),
    #[error("the launch document is not understood: {0}")]
    Parse(#[from] serde_json::Error),
}

/// Takes over an inherited descriptor. Each may be taken once.
pub fn inherited(fd: i32) -> Result<File, LaunchError> {
    if fd < 3 || !std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists() {
        return Err(LaunchError::NotOpen { fd });
    }
    // SAFETY: the descriptor is open (checked above), was inherited for this purpose by the launch contract, and main
    // takes each number once before any other code opens descriptors; so nobody else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC).map_err(io::Error::from)?;
    Ok(File::from(owned))
}

pub fn document<T: DeserializeOwned>(fd: i32) -> Result<T, LaunchError> {
    let mut text = Vec::new();
    inherited(fd)?.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
