//! `Shuffle`: the bytes of map outputs to whoever has their application's token.
//!
//! # What bounds it
//! - A stream has at most one chunk that nobody has taken and one that is being read: a reader that is slow stops its disk
//!   reads, not the worker. With many streams chunks become smaller.
//! - Files are open only in [`Slots`], which are waited for in order. While others wait for one, a stream gives its own back
//!   when its reader makes it wait, and after some chunks in any case: long partitions do not hold up short ones.
//! - Beyond [`Bounds::streams`] streams, callers wait for one to end.

use super::Tenants;
use super::index_cache::{IndexCache, Key};
use super::output::{Output, OutputError, Pieces, file_name, open_application, open_query};
use super::slots::Slots;
use firesteel_common::ApplicationId;
use firesteel_common::shuffle::OutputId;
use firesteel_proto::channel::CHUNK_BYTES;
use firesteel_proto::v1::shuffle_server::Shuffle;
use firesteel_proto::{convert, v1};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

/// Streams on one connection; each costs little while its reader does not read.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
const CHUNK_BYTES_MIN: usize = 16 << 10;
/// Calls of `Discard` that delete at a time.
const DISCARDS_MAX: usize = 2;

/// How much the service may take for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub open_files: usize,
    /// After so many chunks a stream lets others have their turn.
    pub chunks_per_turn: u32,
    pub streams: usize,
    /// What the chunks of all streams shall take together, as long as there are not very many.
    pub buffer_bytes: usize,
    pub index_cache_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            open_files: 64,
            chunks_per_turn: 16,
            streams: 4096,
            buffer_bytes: 64 << 20,
            index_cache_bytes: 64 << 20,
        }
    }
}

/// What the service has done and is doing.
#[derive(Debug, Default)]
pub struct Counters {
    fetches: AtomicU64,
    failures: AtomicU64,
    read_bytes: AtomicU64,
    streams: AtomicUsize,
    stalled: AtomicUsize,
}

impl Counters {
    /// Calls of `Fetch` with a right token.
    pub fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::SeqCst)
    }
    /// Of those, the ones that ended in an error.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }
    /// Of partitions, from the disk (or the system's cache of it).
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::SeqCst)
    }
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }
    /// Streams that wait for their readers.
    pub fn stalled(&self) -> usize {
        self.stalled.load(Ordering::SeqCst)
    }
}

/// Counts up for as long as it lives.
struct Gauge<'a>(&'a AtomicUsize);

impl<'a> Gauge<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The service. Cloning shares it.
#[derive(Debug, Clone)]
pub struct ShuffleService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    tenants: watch::Receiver<Tenants>,
    bounds: Bounds,
    slots: Slots,
    streams: Arc<Semaphore>,
    discards: Semaphore,
    indexes: IndexCache,
    counters: Counters,
}

impl ShuffleService {
    /// `root`: where the applications' directories are.
    pub fn new(root: PathBuf, tenants: watch::Receiver<Tenants>, bounds: Bounds) -> Self {
        let inner = Inner {
            root,
            tenants,
            bounds,
            slots: Slots::new(bounds.open_files),
            streams: Arc::new(Semaphore::new(bounds.streams)),
            discards: Semaphore::new(DISCARDS_MAX),
            indexes: IndexCache::new(bounds.index_cache_bytes),
            counters: Counters::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    pub fn slots(&self) -> &Slots {
        &self.inner.slots
    }

    pub fn index_cache_bytes(&self) -> usize {
        self.inner.indexes.bytes()
    }
}

type Chunk = Result<v1::FetchedBytes, Status>;

#[tonic::async_trait]
impl Shuffle for ShuffleService {
    type FetchStream = ReceiverStream<Chunk>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let application = self.inner.authorised(request.metadata(), &request.get_ref().application_id)?;
        let request = request.into_inner();
        let output: OutputId =
            request.output.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let fetch = Fetch {
            service: self.inner.clone(),
            key: Arc::new((application, output)),
            partition: request.partition,
            offset: request.offset,
            max_bytes: request.max_bytes,
        };
        self.inner.counters.fetches.fetch_add(1, Ordering::SeqCst);
        let begun = fetch.begin().await;
        let (output, pieces, total, admission) = begun.map_err(|error| fetch.failed(error))?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            fetch.serve(output, pieces, total, sender).await;
            drop(admission);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn discard(
        &self,
        request: Request<v1::DiscardRequest>,
    ) -> Result<Response<v1::DiscardResponse>, Status> {
        let application = self.inner.authorised(request.metadata(), &request.get_ref().application_id)?;
        let request = request.into_inner();
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let outputs = request.outputs.iter().map(|text| text.parse()).collect::<Result<Vec<OutputId>, _>>();
        let outputs = outputs.map_err(|error| invalid(&error))?;
        let queries = request.queries.iter().map(|text| query(text)).collect::<Result<Vec<_>, _>>()?;
        if outputs.is_empty() && queries.is_empty() {
            // Somebody asks whether this worker is there.
            return Ok(Response::new(v1::DiscardResponse {}));
        }
        let _turn = self.inner.discards.acquire().await.map_err(|error| invalid(&error))?;
        let (root, id) = (self.inner.root.clone(), application.clone());
        let discarded = tokio::task::spawn_blocking(move || discard(&root, &id, &outputs, &queries)).await;
        match discarded {
            Ok(Ok(())) => Ok(Response::new(v1::DiscardResponse {})),
            Ok(Err(error)) => {
                Err(Status::internal(format!("cannot discard map outputs of {application}: {error}")))
            }
            Err(error) => {
                Err(Status::internal(format!("cannot discard map outputs of {application}: {error}")))
            }
        }
    }
}

/// A run of a query: 32 hexadecimal digits, written in one way only.
fn query(text: &str) -> Result<u128, Status> {
    let parsed = u128::from_str_radix(text, 16).ok().filter(|query| format!("{query:032x}") == text);
    parsed.ok_or_else(|| {
        Status::invalid_argument(format!("{text:?} does not name the run of a query (32 hexadecimal digits)"))
    })
}

/// Blocks. Nothing outside of the application's directory is touched, whatever has been planted in it.
fn discard(
    root: &std::path::Path,
    application: &ApplicationId,
    outputs: &[OutputId],
    queries: &[u128],
) -> std::io::Result<()> {
    let gone = |error: &Errno| matches!(*error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR);
    let directory = match open_application(root, application) {
        Ok(directory) => directory,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for output in outputs {
        let removed = open_query(&directory, output.query)
            .and_then(|query| rustix::fs::unlinkat(query, file_name(output), AtFlags::empty()));
        match removed {
            Err(error) if !gone(&error) => return Err(error.into()),
            _ => {}
        }
    }
    for query in queries {
        let path = root.join(application.as_str()).join(format!("{query:032x}"));
        match crate::scratch::remove_tree(&path) {
            // An attempt that has not noticed its end may still be writing: what it leaves goes with the application.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            result => result?,
        }
    }
    Ok(())
}

impl Inner {
    /// The application whose token the caller presents. One answer for an unknown application and a wrong token.
    fn authorised(&self, metadata: &MetadataMap, application: &str) -> Result<ApplicationId, Status> {
        let id = convert::application_id(application)?;
        let tenants = self.tenants.borrow().clone();
        let Some(tenants) = tenants else {
            return Err(Status::unavailable(
                "this worker has started and not heard from the masters yet\nhint: try again in a moment",
            ));
        };
        let guess = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let guess = guess.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match tenants.get(&id) {
            Some(token) if token.matches(guess) => Ok(id),
            _ => Err(Status::unauthenticated(format!(
                "no application {id} keeps map outputs on this worker with that token"
            ))),
        }
    }

    /// So much is read at a time: with very many streams less, so that all together take no more.
    fn chunk_bytes(&self) -> u64 {
        let streams = self.counters.streams().max(1);
        // Each may have one chunk that is waiting and one that is being read.
        (self.bounds.buffer_bytes / (2 * streams)).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES) as u64
    }

    async fn open(self: &Arc<Self>, key: &Key) -> Result<Output, OutputError> {
        let slot = self.slots.take().await;
        let (service, key) = (self.clone(), key.clone());
        let opened = tokio::task::spawn_blocking(move || Output::open(&service.root, &key.0, &key.1, slot));
        opened.await.map_err(|error| OutputError::Read(error.into()))?
    }
}

/// Why a partition is not served.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("it has no partition {asked}, only {there}")]
    NoPartition { asked: u32, there: usize },
}

/// One call.
struct Fetch {
    service: Arc<Inner>,
    key: Key,
    partition: u32,
    offset: u64,
    max_bytes: u64,
}

impl Fetch {
    /// The file, what to read of it, how long the partition is, and the right to be served.
    async fn begin(&self) -> Result<(Output, Pieces, u64, OwnedSemaphorePermit), FetchError> {
        let admission = self.service.streams.clone().acquire_owned().await;
        let admission =
            admission.map_err(|error| OutputError::Busy(std::io::Error::other(error.to_string())))?;
        let output = self.service.open(&self.key).await?;
        let (output, index) = self.service.indexes.index(&self.key, output).await?;
        let partition = usize::try_from(self.partition).unwrap_or(usize::MAX);
        if partition >= index.partitions() {
            return Err(FetchError::NoPartition { asked: self.partition, there: index.partitions() });
        }
        let mut rest = Pieces::new(index.pieces(partition));
        rest.next(self.offset);
        let asked = Pieces::new(rest.next(self.max_bytes).into_iter());
        Ok((output, asked, index.bytes(partition), admission))
    }

    /// Until everything is sent, something is wrong, or the reader has gone.
    async fn serve(
        &self,
        output: Output,
        mut pieces: Pieces,
        partition_bytes: u64,
        sender: mpsc::Sender<Chunk>,
    ) {
        let counters = &self.service.counters;
        let _stream = Gauge::new(&counters.streams);
        let identity = output.identity;
        let mut open = Some(output);
        let mut chunks = 0;
        if pieces.is_empty() {
            // Whoever asks learns the length in any case. A reader that has gone is none of our business.
            let _ = sender.send(Ok(v1::FetchedBytes { bytes: Vec::new(), partition_bytes })).await;
        }
        while !pieces.is_empty() {
            let place = match sender.try_reserve() {
                Ok(place) => place,
                Err(TrySendError::Closed(())) => return,
                Err(TrySendError::Full(())) => {
                    let _stalled = Gauge::new(&counters.stalled);
                    let reserved = tokio::select! {
                        biased;
                        reserved = sender.reserve() => reserved,
                        () = self.service.slots.wanted() => {
                            open = None;
                            sender.reserve().await
                        }
                    };
                    let Ok(place) = reserved else { return };
                    place
                }
            };
            if chunks >= self.service.bounds.chunks_per_turn && self.service.slots.waiting() > 0 {
                open = None;
            }
            let output = match open.take() {
                Some(output) => Ok(output),
                None => {
                    chunks = 0;
                    self.reopen(identity).await
                }
            };
            chunks += 1;
            let read = match output {
                Ok(output) => self.read(output, &mut pieces).await,
                Err(error) => Err(error),
            };
            match read {
                Ok((output, bytes)) => {
                    place.send(Ok(v1::FetchedBytes { bytes, partition_bytes }));
                    open = Some(output);
                }
                Err(error) => return place.send(Err(self.failed(error.into()))),
            }
        }
    }

    async fn reopen(&self, identity: super::output::Identity) -> Result<Output, OutputError> {
        let output = self.service.open(&self.key).await?;
        if output.identity == identity { Ok(output) } else { Err(OutputError::Replaced) }
    }

    async fn read(&self, output: Output, pieces: &mut Pieces) -> Result<(Output, Vec<u8>), OutputError> {
        let ranges = pieces.next(self.service.chunk_bytes());
        let read = tokio::task::spawn_blocking(move || output.read(&ranges).map(|bytes| (output, bytes)));
        let (output, bytes) = read.await.map_err(|error| OutputError::Read(error.into()))??;
        self.service.counters.read_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok((output, bytes))
    }

    fn failed(&self, error: FetchError) -> Status {
        self.service.counters.failures.fetch_add(1, Ordering::SeqCst);
        let (application, output) = &*self.key;
        let code = match &error {
            FetchError::NoPartition { .. } => Code::InvalidArgument,
            FetchError::Output(OutputError::Missing | OutputError::Replaced) => Code::NotFound,
            FetchError::Output(OutputError::Busy(_)) => Code::Unavailable,
            FetchError::Output(_) => Code::DataLoss,
        };
        if code == Code::DataLoss {
            tracing::warn!(%application, %output, "a map output cannot be served: {error}");
        } else {
            tracing::debug!(%application, %output, "a map output is not served: {error}");
        }
        Status::new(code, format!("map output {output} of {application}: {error}"))
    }
}
