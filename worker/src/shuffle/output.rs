//! One map output on the disk. Executors own the directory: whatever they have put there, nothing outside of it is opened,
//! and what does not look like an output is an error with a name.

use super::slots::Slot;
use firesteel_common::ApplicationId;
use firesteel_common::shuffle::{InvalidIndex, OutputId, OutputIndex, TRAILER_BYTES};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// What is wrong with an output, or with the way to it.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("this worker does not have it (any more)")]
    Missing,
    #[error("it has been replaced while it was read")]
    Replaced,
    #[error("what is there is no regular file")]
    NotAFile,
    #[error(transparent)]
    Index(#[from] InvalidIndex),
    #[error("damaged map output: it has become shorter than its index says")]
    Truncated,
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    #[error("the worker cannot open it now: {0}")]
    Busy(io::Error),
}

impl From<Errno> for OutputError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Missing,
            // A link, or a file where a directory belongs.
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => Self::NotAFile,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => Self::Busy(errno.into()),
            errno => Self::Read(errno.into()),
        }
    }
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match (error.kind(), Errno::from_io_error(&error)) {
            (io::ErrorKind::UnexpectedEof, _) => Self::Truncated,
            (_, Some(errno)) => errno.into(),
            (_, None) => Self::Read(error),
        }
    }
}

/// Tells a file from another that has come in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// An open output.
#[derive(Debug)]
pub struct Output {
    file: File,
    pub identity: Identity,
    _slot: Slot,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens an application's directory below `root`, which is the worker's own.
pub fn open_application(root: &Path, application: &ApplicationId) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open(root, DIRECTORY, Mode::empty())?;
    rustix::fs::openat(&root, application.as_str(), DIRECTORY, Mode::empty())
}

/// Opens a query's directory in its application's.
pub fn open_query(application: impl AsFd, query: u128) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(application, format!("{query:032x}"), DIRECTORY, Mode::empty())
}

/// The name of an output in its query's directory.
pub fn file_name(id: &OutputId) -> String {
    // A relative path of two components by construction; the second is all digits, `-` and the suffix.
    let path = id.relative_path();
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Output {
    /// Component by component, following no link. Blocks.
    pub fn open(
        root: &Path,
        application: &ApplicationId,
        id: &OutputId,
        slot: Slot,
    ) -> Result<Self, OutputError> {
        let query = open_query(open_application(root, application)?, id.query)?;
        // NONBLOCK: a pipe put there must not hang the worker.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&query, file_name(id), flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(OutputError::NotAFile);
        }
        Ok(Self { file, identity: Identity::of(&metadata), _slot: slot })
    }

    /// Reads and checks the index. Blocks. Returns also its size.
    pub fn read_index(&self) -> Result<(OutputIndex, usize), OutputError> {
        let bytes = self.identity.bytes;
        let mut trailer = [0; TRAILER_BYTES as usize];
        let start = bytes.checked_sub(TRAILER_BYTES).ok_or(InvalidIndex::Shape("too short"))?;
        self.file.read_exact_at(&mut trailer, start)?;
        let (place, crc) = OutputIndex::locate(&trailer, bytes)?;
        // `locate` has bounded it.
        let length = usize::try_from(place.end - place.start).map_err(|_| InvalidIndex::Shape("too long"))?;
        let mut index = vec![0; length];
        self.file.read_exact_at(&mut index, place.start)?;
        Ok((OutputIndex::decode(&index, crc, place.start)?, length))
    }

    /// Reads these ranges, one after another, into one chunk. Blocks.
    pub fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<u8>, OutputError> {
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let mut chunk = vec![0; usize::try_from(total).map_err(io::Error::other)?];
        let mut rest = chunk.as_mut_slice();
        for range in ranges {
            let (part, after) = rest.split_at_mut((range.end - range.start) as usize);
            self.file.read_exact_at(part, range.start)?;
            rest = after;
        }
        Ok(chunk)
    }
}

/// What is still to be read of one partition, in order.
#[derive(Debug)]
pub struct Pieces {
    /// The next one last.
    left: Vec<Range<u64>>,
}

impl Pieces {
    /// Neighbours are read as one.
    pub fn new(pieces: impl Iterator<Item = Range<u64>>) -> Self {
        let mut left: Vec<Range<u64>> = Vec::new();
        for piece in pieces {
            match left.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => left.push(piece),
            }
        }
        left.reverse();
        Self { left }
    }

    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The next ranges, together at most `bytes` long.
    pub fn next(&mut self, mut bytes: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        while bytes > 0
            && let Some(piece) = self.left.last_mut()
        {
            let end = piece.end.min(piece.start.saturating_add(bytes));
            bytes -= end - piece.start;
            ranges.push(piece.start..end);
            piece.start = end;
            if piece.is_empty() {
                self.left.pop();
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_into_chunks_across_their_borders() {
        let mut pieces = Pieces::new([0..10, 10..15, 20..21, 30..100].into_iter());
        let mut next = |bytes| pieces.next(bytes).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(next(12), [(0, 12)]);
        assert_eq!(next(12), [(12, 15), (20, 21), (30, 38)]);
        assert_eq!(next(1000), [(38, 100)]);
        assert!(pieces.is_empty() && pieces.next(1).is_empty());
        assert!(Pieces::new(std::iter::empty()).is_empty());
    }
}
