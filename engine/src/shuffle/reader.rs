//! Reads partitions of map outputs: from the file when this machine's worker keeps it, through that worker's service
//! otherwise, or from the task's own description.
//!
//! No file and no call stays open while nobody reads: a task may read from ten thousand outputs at once, and a merge needs a
//! batch of each of them before it takes the second of any. So the open ones are bounded by a gate. Each read passes it in a
//! task of its own: a stream that nobody polls for a while (the other side of a join goes first) must not keep a place in it.
//!
//! Files are read, not mapped: an error of the disk under a mapping kills the process, here it is an error of one task.

use crate::shuffle::decode::Decoder;
use crate::shuffle::error::ShuffleError;
use crate::transport::ApplicationChannels;
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use bytes::Bytes;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use datafusion_distributed::grpc::BoxCloneSyncChannel;
use firesteel_common::ApplicationId;
use firesteel_common::shuffle::{OUTPUT_SUFFIX, OutputId, OutputIndex, TRAILER_BYTES};
use firesteel_proto::v1;
use firesteel_proto::v1::shuffle_client::ShuffleClient;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::Code;

/// Reads under way at once in a process, whatever the number of inputs.
const READS_MAX: usize = 64;
/// Decoded indexes kept in a process.
const INDEX_BYTES_MAX: usize = 16 << 20;
/// What all inputs of one task may have in memory, undecoded.
const IN_FLIGHT_BYTES: usize = 64 << 20;
const CHUNK_BYTES_MIN: usize = 32 << 10;
const CHUNK_BYTES_MAX: usize = 2 << 20;
/// A worker that does not answer is asked again after these pauses; then its output counts as lost.
const REMOTE_PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(2),
];

/// Where an output is.
#[derive(Debug, Clone)]
pub enum Source {
    /// One partition came with the task's description; empty if it has no rows.
    Inline(Bytes),
    /// `address` serves the outputs of `worker`.
    Worker { worker: String, address: String },
}

/// Reads outputs of one application.
#[derive(Debug, Clone)]
pub struct OutputReader {
    application: ApplicationId,
    channels: ApplicationChannels,
    /// The worker of this machine and the application's directory there.
    local: Option<(String, PathBuf)>,
    gate: Arc<Semaphore>,
    indexes: Arc<Indexes>,
}

/// Indexes of local files: every partition of a file needs its own.
#[derive(Debug, Default)]
struct Indexes {
    known: Mutex<(HashMap<PathBuf, Arc<OutputIndex>>, usize)>,
}

impl Indexes {
    fn get(&self, path: &Path) -> Option<Arc<OutputIndex>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).0.get(path).cloned()
    }

    fn put(&self, path: &Path, index: Arc<OutputIndex>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.1 > INDEX_BYTES_MAX {
            *known = Default::default();
        }
        known.1 += index.memory_bytes();
        known.0.insert(path.to_owned(), index);
    }
}

impl OutputReader {
    pub fn new(
        application: ApplicationId,
        channels: ApplicationChannels,
        local: Option<(String, PathBuf)>,
    ) -> Self {
        let gate = Arc::new(Semaphore::new(READS_MAX));
        Self { application, channels, local, gate, indexes: Arc::default() }
    }

    /// The batches of one partition. Nothing is read before the stream is polled. `inputs` is how many such streams share
    /// the task's memory.
    pub fn read(
        &self,
        output: OutputId,
        source: Source,
        partition: usize,
        inputs: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let chunk = (IN_FLIGHT_BYTES / inputs.max(1)).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        let bytes = match source {
            Source::Inline(bytes) => Pieces::Inline(Some(bytes).filter(|b| !b.is_empty())),
            Source::Worker { worker, address } => match &self.local {
                Some((here, dir)) if *here == worker => {
                    Pieces::File { path: dir.join(format!("{output}{OUTPUT_SUFFIX}")), ranges: None }
                }
                _ => Pieces::Remote { address, offset: 0, total: None },
            },
        };
        let state =
            Reading { reader: self.clone(), output, partition, chunk, bytes, decoder: Decoder::default() };
        stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(batch)) => Some((Ok(batch), Some(state))),
                Ok(None) => None,
                Err(error) => Some((Err(error.into()), None)),
            }
        })
        .boxed()
    }
}

/// Bytes yet to come.
enum Pieces {
    Inline(Option<Bytes>),
    /// `ranges` are known once the index has been read.
    File {
        path: PathBuf,
        ranges: Option<VecDeque<Range<u64>>>,
    },
    Remote {
        address: String,
        offset: u64,
        total: Option<u64>,
    },
}

struct Reading {
    reader: OutputReader,
    output: OutputId,
    partition: usize,
    chunk: usize,
    bytes: Pieces,
    decoder: Decoder,
}

impl Reading {
    fn lost(&self, reason: impl std::fmt::Display) -> ShuffleError {
        ShuffleError::Lost { output: self.output.clone(), reason: reason.to_string() }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>, ShuffleError> {
        loop {
            if let Some(batch) = self.decoder.next().map_err(|e| self.lost(format!("damaged: {e}")))? {
                return Ok(Some(batch));
            }
            match self.more().await? {
                Some(bytes) => self.decoder.feed(bytes),
                None => {
                    self.decoder.finish().map_err(|e| self.lost(format!("damaged: {e}")))?;
                    return Ok(None);
                }
            }
        }
    }

    async fn more(&mut self) -> Result<Option<Buffer>, ShuffleError> {
        match &mut self.bytes {
            Pieces::Inline(bytes) => Ok(bytes.take().map(Buffer::from)),
            Pieces::File { .. } => self.more_of_file().await,
            Pieces::Remote { .. } => self.more_of_remote().await,
        }
    }

    async fn more_of_file(&mut self) -> Result<Option<Buffer>, ShuffleError> {
        let Pieces::File { path, ranges } = &mut self.bytes else { return Ok(None) };
        if ranges.as_ref().is_some_and(VecDeque::is_empty) {
            return Ok(None);
        }
        let (path, ranges_now) = (path.clone(), ranges.take());
        let (partition, chunk) = (self.partition, self.chunk);
        let (gate, indexes) = (Arc::clone(&self.reader.gate), Arc::clone(&self.reader.indexes));
        let read = SpawnedTask::spawn(async move {
            let _permit = gate.acquire_owned().await;
            tokio::task::spawn_blocking(move || read_file(&indexes, &path, ranges_now, partition, chunk))
                .await
        });
        match read.await {
            Ok(Ok(Ok((bytes, left)))) => {
                if let Pieces::File { ranges, .. } = &mut self.bytes {
                    *ranges = Some(left);
                }
                Ok((!bytes.is_empty()).then(|| Buffer::from(bytes)))
            }
            Ok(Ok(Err(reason))) => Err(self.lost(reason)),
            Ok(Err(stopped)) | Err(stopped) => Err(self.lost(stopped)),
        }
    }

    async fn more_of_remote(&mut self) -> Result<Option<Buffer>, ShuffleError> {
        let Pieces::Remote { address, offset, total } = &self.bytes else { return Ok(None) };
        let (address, offset) = (address.clone(), *offset);
        if total.is_some_and(|total| offset >= total) {
            return Ok(None);
        }
        if address.is_empty() {
            return Err(self.lost("its worker is gone"));
        }
        let request = v1::FetchRequest {
            application_id: self.reader.application.to_string(),
            output: self.output.to_string(),
            partition: self.partition as u32,
            offset,
            max_bytes: self.chunk as u64,
        };
        let (gate, channels, from) =
            (Arc::clone(&self.reader.gate), self.reader.channels.clone(), address.clone());
        let fetched =
            SpawnedTask::spawn(async move { fetch_patiently(&gate, &channels, &from, &request).await });
        match fetched.await {
            Ok(Ok((bytes, all))) if bytes.is_empty() && offset < all => {
                Err(self.lost(format!("{address} sent nothing at {offset} of {all}")))
            }
            Ok(Ok((bytes, all))) => {
                let next = offset + bytes.len() as u64;
                self.bytes = Pieces::Remote { address, offset: next, total: Some(all) };
                Ok((!bytes.is_empty()).then(|| Buffer::from(bytes)))
            }
            Ok(Err(status)) => Err(self.lost(format!("{address}: {}", status.message()))),
            Err(stopped) => Err(self.lost(stopped)),
        }
    }
}

/// One chunk and the partition's whole length; asks again unless the answer will not change.
async fn fetch_patiently(
    gate: &Semaphore,
    channels: &ApplicationChannels,
    address: &str,
    request: &v1::FetchRequest,
) -> Result<(Vec<u8>, u64), tonic::Status> {
    let mut pauses = REMOTE_PAUSES.iter();
    loop {
        let fetched = match channels.channel(address).await {
            Ok(channel) => {
                let _permit = gate.acquire().await;
                fetch(channel, request.clone()).await
            }
            Err(error) => Err(tonic::Status::unavailable(reason(&error))),
        };
        let status = match fetched {
            Err(status) => status,
            fetched => return fetched,
        };
        let for_good = matches!(
            status.code(),
            Code::NotFound | Code::DataLoss | Code::InvalidArgument | Code::Unauthenticated
        );
        match pauses.next() {
            Some(pause) if !for_good => {
                channels.forget(address);
                tokio::time::sleep(*pause).await;
            }
            _ => return Err(status),
        }
    }
}

async fn fetch(
    channel: BoxCloneSyncChannel,
    request: v1::FetchRequest,
) -> Result<(Vec<u8>, u64), tonic::Status> {
    let mut answers = ShuffleClient::new(channel).fetch(request).await?.into_inner();
    let (mut bytes, mut total) = (Vec::new(), 0);
    while let Some(part) = answers.message().await? {
        total = part.partition_bytes;
        match bytes.is_empty() {
            true => bytes = part.bytes,
            false => bytes.extend_from_slice(&part.bytes),
        }
    }
    Ok((bytes, total))
}

fn reason(error: &DataFusionError) -> String {
    crate::sql::run::friendly(error)
}

/// Up to `chunk` bytes of a partition, and what is left of it. Opens and closes the file.
fn read_file(
    indexes: &Indexes,
    path: &Path,
    ranges: Option<VecDeque<Range<u64>>>,
    partition: usize,
    chunk: usize,
) -> Result<(Vec<u8>, VecDeque<Range<u64>>), String> {
    let in_file = |e: io::Error| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(in_file)?;
    let mut ranges = match ranges {
        Some(ranges) => ranges,
        None => {
            let index = match indexes.get(path) {
                Some(index) => index,
                None => {
                    let index = read_index(&file).map_err(|e| format!("{}: {e}", path.display()))?;
                    let index = Arc::new(index);
                    indexes.put(path, Arc::clone(&index));
                    index
                }
            };
            index.pieces(partition).collect()
        }
    };
    let mut bytes = Vec::new();
    while bytes.len() < chunk
        && let Some(range) = ranges.pop_front()
    {
        let take = (range.end - range.start).min((chunk - bytes.len()) as u64);
        let begin = bytes.len();
        bytes.resize(begin + take as usize, 0);
        file.read_exact_at(&mut bytes[begin..], range.start).map_err(in_file)?;
        if range.start + take < range.end {
            ranges.push_front(range.start + take..range.end);
        }
    }
    Ok((bytes, ranges))
}

fn read_index(file: &File) -> Result<OutputIndex, Box<dyn std::error::Error>> {
    let length = file.metadata()?.len();
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, length.saturating_sub(TRAILER_BYTES))?;
    let (range, crc) = OutputIndex::locate(&trailer, length)?;
    let mut index = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut index, range.start)?;
    Ok(OutputIndex::decode(&index, crc, range.start)?)
}
