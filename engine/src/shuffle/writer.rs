//! Writes one attempt's output: partitions are encoded as batches come, kept in memory up to a limit, and appended to the
//! file group by group. Small outputs never become a file.

use crate::shuffle::error::ShuffleError;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use firesteel_common::shuffle::{OutputId, OutputIndex};
use firesteel_common::{ExecutorId, ShuffleLaunch};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Encoded bytes that an attempt keeps before it writes a group.
const GROUP_BYTES: usize = 32 << 20;
const GROUP_BYTES_MIN: usize = 1 << 20;
/// The application's usage is measured again after so many written bytes.
const MEASURE_EVERY_BYTES: u64 = 256 << 20;

/// The application's directory on this worker, with its limits.
#[derive(Debug)]
pub struct OutputDirectory {
    path: PathBuf,
    executor: u32,
    quota_bytes: u64,
    free_floor_bytes: u64,
    /// Bytes written since the usage was last measured, and the usage then.
    unmeasured: AtomicU64,
    measured: AtomicU64,
}

impl OutputDirectory {
    pub fn new(launch: &ShuffleLaunch, executor: &ExecutorId) -> Self {
        Self {
            path: launch.dir.clone(),
            executor: executor.number,
            quota_bytes: launch.quota_bytes,
            free_floor_bytes: launch.free_floor_bytes,
            // The first write measures.
            unmeasured: AtomicU64::new(MEASURE_EVERY_BYTES),
            measured: AtomicU64::new(0),
        }
    }

    /// Where a finished output is.
    pub fn file(&self, output: &OutputId) -> PathBuf {
        self.path.join(output.relative_path())
    }

    /// Takes `bytes` from what the application may still write here.
    fn claim(&self, output: &OutputId, bytes: u64) -> Result<(), ShuffleError> {
        let no_space = |reason| ShuffleError::NoSpace { output: output.clone(), reason };
        let written = self.unmeasured.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written >= MEASURE_EVERY_BYTES {
            // Other executors write here, too.
            self.measured.store(usage(&self.path), Ordering::Relaxed);
            self.unmeasured.store(bytes, Ordering::Relaxed);
        }
        let used = || self.measured.load(Ordering::Relaxed) + self.unmeasured.load(Ordering::Relaxed);
        if self.quota_bytes > 0 && used() > self.quota_bytes {
            // Much may have been discarded since it was measured.
            self.measured.store(usage(&self.path), Ordering::Relaxed);
            self.unmeasured.store(bytes, Ordering::Relaxed);
        }
        if self.quota_bytes > 0 && used() > self.quota_bytes {
            return Err(no_space(format!(
                "the application's quota of {} MiB on this worker is used up (worker flag --shuffle-quota)",
                self.quota_bytes >> 20
            )));
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.path) {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free < self.free_floor_bytes.saturating_add(bytes) {
                return Err(no_space(format!(
                    "{} MiB are free on the disk of {} and {} MiB must stay free (worker flag --shuffle-free-floor)",
                    free >> 20,
                    self.path.display(),
                    self.free_floor_bytes >> 20
                )));
            }
        }
        Ok(())
    }
}

/// Bytes of all files of the application; what vanishes meanwhile does not count.
fn usage(path: &Path) -> u64 {
    let files = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    files(path)
        .flat_map(|query| files(&query.path()))
        .filter_map(|file| file.metadata().ok())
        .map(|m| m.len())
        .sum()
}

/// What an attempt has left.
#[derive(Debug)]
pub struct Written {
    pub partition_bytes: Vec<u64>,
    pub rows: u64,
    /// The partitions that have rows, when the output was too small for a file.
    pub inline: Option<Vec<(usize, Vec<u8>)>>,
}

#[derive(Default)]
struct Partition {
    encoder: Option<StreamWriter<Vec<u8>>>,
    bytes: u64,
}

/// One attempt's output. Dropped before [`Self::finish`], it leaves nothing.
pub struct OutputWriter {
    output: OutputId,
    directory: Arc<OutputDirectory>,
    schema: SchemaRef,
    options: IpcWriteOptions,
    partitions: Vec<Partition>,
    index: OutputIndex,
    file: Option<TemporaryFile>,
    buffered: usize,
    rows: u64,
    inline_bytes_max: u64,
    reservation: MemoryReservation,
}

impl OutputWriter {
    pub fn new(
        output: OutputId,
        directory: Arc<OutputDirectory>,
        schema: SchemaRef,
        partitions: usize,
        options: IpcWriteOptions,
        inline_bytes_max: u64,
        pool: &Arc<dyn MemoryPool>,
    ) -> Self {
        let reservation = MemoryConsumer::new(format!("map output {output}")).register(pool);
        Self {
            output,
            directory,
            schema,
            options,
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            index: OutputIndex::new(partitions),
            file: None,
            buffered: 0,
            rows: 0,
            inline_bytes_max,
            reservation,
        }
    }

    /// Adds rows to a partition; writes a group when enough has gathered.
    pub async fn write(&mut self, partition: usize, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        let Some(target) = self.partitions.get_mut(partition) else {
            return datafusion::common::internal_err!("partition {partition} of {}", self.partitions.len());
        };
        let (before, after) = match &mut target.encoder {
            Some(encoder) => {
                let before = encoder.get_ref().len();
                encoder.write(batch)?;
                (before, encoder.get_ref().len())
            }
            None => {
                let mut encoder =
                    StreamWriter::try_new_with_options(Vec::new(), &self.schema, self.options.clone())?;
                encoder.write(batch)?;
                let after = encoder.get_ref().len();
                target.encoder = Some(encoder);
                (0, after)
            }
        };
        let grown = after - before;
        self.buffered += grown;
        let short = self.reservation.try_grow(grown).is_err();
        // Short of memory, what is here is written now, unless it is too little to be worth a group.
        if self.buffered >= GROUP_BYTES || (short && self.buffered >= GROUP_BYTES_MIN) {
            self.write_group().await?;
        } else if short {
            self.reservation.grow(grown);
        }
        Ok(())
    }

    async fn write_group(&mut self) -> Result<()> {
        let mut pieces = Vec::new();
        let mut lengths = Vec::with_capacity(self.partitions.len());
        for partition in &mut self.partitions {
            let piece = partition.encoder.as_mut().map(|e| std::mem::take(e.get_mut())).unwrap_or_default();
            partition.bytes += piece.len() as u64;
            lengths.push(piece.len() as u64);
            if !piece.is_empty() {
                pieces.push(piece);
            }
        }
        let bytes: u64 = lengths.iter().sum();
        if bytes > 0 {
            let file = self.file.take();
            let (directory, output) = (Arc::clone(&self.directory), self.output.clone());
            let written = blocking(move || {
                directory.claim(&output, bytes)?;
                let mut file = match file {
                    Some(file) => file,
                    None => TemporaryFile::create(&directory, &output)?,
                };
                for piece in &pieces {
                    file.append(&output, piece)?;
                }
                Ok(file)
            });
            let file = written.await?;
            self.index.push_group(file.bytes - bytes, lengths);
            self.file = Some(file);
        }
        self.buffered = 0;
        self.reservation.free();
        Ok(())
    }

    /// Ends the streams and makes the output visible under its name, all at once.
    pub async fn finish(mut self) -> Result<Written> {
        for partition in &mut self.partitions {
            if let Some(encoder) = &mut partition.encoder {
                encoder.finish()?;
            }
        }
        if self.file.is_none() {
            let bytes: usize =
                self.partitions.iter().filter_map(|p| p.encoder.as_ref()).map(|e| e.get_ref().len()).sum();
            if bytes as u64 <= self.inline_bytes_max {
                return self.inline();
            }
        }
        self.write_group().await?;
        let file = self.file.take();
        let (directory, output, tail) =
            (Arc::clone(&self.directory), self.output.clone(), self.index.encode());
        blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => TemporaryFile::create(&directory, &output)?,
            };
            file.append(&output, &tail)?;
            file.publish(&directory, &output)
        })
        .await?;
        let partition_bytes = self.partitions.iter().map(|p| p.bytes).collect();
        Ok(Written { partition_bytes, rows: self.rows, inline: None })
    }

    fn inline(&mut self) -> Result<Written> {
        let mut inline = Vec::new();
        let mut partition_bytes = Vec::with_capacity(self.partitions.len());
        for (number, partition) in self.partitions.iter_mut().enumerate() {
            let bytes = partition.encoder.as_mut().map(|e| std::mem::take(e.get_mut())).unwrap_or_default();
            partition_bytes.push(bytes.len() as u64);
            if !bytes.is_empty() {
                inline.push((number, bytes));
            }
        }
        Ok(Written { partition_bytes, rows: self.rows, inline: Some(inline) })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ShuffleError> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(DataFusionError::External(Box::new(error))),
    }
}

/// An output under its temporary name, removed unless it is published.
#[derive(Debug)]
struct TemporaryFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    published: bool,
}

impl TemporaryFile {
    fn create(directory: &OutputDirectory, output: &OutputId) -> Result<Self, ShuffleError> {
        let failed = |source: io::Error| write_error(output, source);
        let target = directory.file(output);
        let query = target.parent().unwrap_or(&directory.path);
        match DirBuilder::new().mode(0o700).create(query) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        // The worker removes the temporary files of an executor that has ended by this name.
        let name = format!(".tmp-{}-{}-{}-{}", directory.executor, output.stage, output.task, output.attempt);
        let path = query.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        Ok(Self { file, path, bytes: 0, published: false })
    }

    fn append(&mut self, output: &OutputId, bytes: &[u8]) -> Result<(), ShuffleError> {
        self.file.write_all(bytes).map_err(|source| write_error(output, source))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn publish(mut self, directory: &OutputDirectory, output: &OutputId) -> Result<(), ShuffleError> {
        let failed = |source| write_error(output, source);
        std::fs::rename(&self.path, directory.file(output)).map_err(failed)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn write_error(output: &OutputId, source: io::Error) -> ShuffleError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ShuffleError::NoSpace { output: output.clone(), reason: source.to_string() }
        }
        _ => ShuffleError::Write { output: output.clone(), source },
    }
}
