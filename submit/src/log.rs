//! Reading the log of a process through the master, byte for byte, across lost connections.

use crate::exit::{Failure, is_break, is_connection_loss};
use crate::master::{Backoff, Cluster, client, reason};
use crate::output::Output;
use firesteel_proto::masters::Leader;
use firesteel_proto::v1::{LogChunk, LogStream, ProcessId, ReadLogRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One log file of one process.
#[derive(Debug, Clone)]
pub struct Log {
    pub process: ProcessId,
    pub stream: LogStream,
}

impl Log {
    pub fn new(application_id: &str, process: &str, stream: LogStream) -> Self {
        Self { process: ProcessId { application_id: application_id.into(), name: process.into() }, stream }
    }

    fn request(&self) -> ReadLogRequest {
        ReadLogRequest {
            process: Some(self.process.clone()),
            stream: self.stream.into(),
            offset: 0,
            tail_bytes: 0,
            follow: false,
        }
    }

    fn doing(&self) -> String {
        format!("read the log of {} {}", self.process.application_id, self.process.name)
    }

    fn failure(&self, status: &tonic::Status) -> Failure {
        Failure::from_status(status, &self.doing())
    }

    /// Copies everything from `offset` on until the process has ended and all it wrote has been copied. `copied` counts
    /// the bytes, for somebody who wonders whether the log still moves; `on_loss` is told once per break.
    pub async fn follow(
        &self,
        cluster: &Cluster,
        mut offset: u64,
        output: &mut Output,
        copied: &AtomicU64,
        mut on_loss: impl FnMut(&str),
    ) -> Result<(), Failure> {
        let mut backoff = Backoff::new();
        let mut lost = false;
        loop {
            let why = match cluster.look().await {
                Err(error) => error.to_string(),
                Ok(leader) => {
                    let request = ReadLogRequest { offset, follow: true, ..self.request() };
                    let mut on_chunk = async |chunk: LogChunk| {
                        output.write(&chunk.data).await?;
                        offset = chunk.next_offset;
                        copied.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
                        (backoff, lost) = (Backoff::new(), false);
                        Ok(())
                    };
                    match self.copy(&leader, request, &mut on_chunk).await {
                        Ok(()) => return Ok(output.finish().await?),
                        Err(Broken::Here(failure)) => return Err(failure),
                        Err(Broken::There(status)) if !is_connection_loss(&status) => {
                            return Err(self.failure(&status));
                        }
                        Err(Broken::There(status)) => {
                            cluster.failed(&leader, Some(&status));
                            reason(&status)
                        }
                    }
                }
            };
            if !std::mem::replace(&mut lost, true) {
                on_loss(&why);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// What is there now, or its last `lines` lines; and the offset after it.
    pub async fn read(
        &self,
        cluster: &Cluster,
        lines: Option<u32>,
        output: &mut Output,
    ) -> Result<u64, Failure> {
        let offset = match lines {
            None => {
                let mut offset = 0;
                self.at_leader(cluster, async |leader| {
                    // After a break it goes on from where it was.
                    let request = ReadLogRequest { offset, ..self.request() };
                    let mut on_chunk = async |chunk: LogChunk| {
                        output.write(&chunk.data).await?;
                        offset = chunk.next_offset;
                        Ok(())
                    };
                    self.copy(&leader, request, &mut on_chunk).await
                })
                .await?;
                offset
            }
            Some(lines) => {
                let (data, offset) = self.tail(cluster, lines).await?;
                output.write(&data).await?;
                offset
            }
        };
        output.finish().await?;
        Ok(offset)
    }

    /// The last `lines` lines, and the offset after them.
    pub async fn tail(&self, cluster: &Cluster, lines: u32) -> Result<(Vec<u8>, u64), Failure> {
        const TAIL_BYTES_MAX: u64 = 1 << 30;
        // The protocol counts bytes; a longer piece is asked for until it holds enough lines.
        let mut tail_bytes = (u64::from(lines) * 256).clamp(64 << 10, TAIL_BYTES_MAX);
        loop {
            let read = async |leader| {
                let (mut data, mut offset) = (Vec::new(), 0);
                let request = ReadLogRequest { tail_bytes, ..self.request() };
                let mut on_chunk = async |chunk: LogChunk| {
                    data.extend_from_slice(&chunk.data);
                    offset = chunk.next_offset;
                    Ok(())
                };
                self.copy(&leader, request, &mut on_chunk).await?;
                Ok((data, offset))
            };
            let (mut data, offset) = self.at_leader(cluster, read).await?;
            let whole = (data.len() as u64) < tail_bytes;
            match last_lines(&data, lines) {
                Some(start) => return Ok((data.split_off(start), offset)),
                None if whole || tail_bytes >= TAIL_BYTES_MAX => return Ok((data, offset)),
                None => tail_bytes *= 4,
            }
        }
    }

    /// Reads at the leader, again when another one takes over. A leader that cannot reach the log's worker is not asked
    /// again: that is the answer.
    async fn at_leader<T>(
        &self,
        cluster: &Cluster,
        mut read: impl AsyncFnMut(Leader) -> Result<T, Broken>,
    ) -> Result<T, Failure> {
        let outcome = cluster.request(async |leader| match read(leader).await {
            Ok(value) => Ok(Ok(value)),
            Err(Broken::Here(failure)) => Ok(Err(failure)),
            Err(Broken::There(status)) if is_break(&status) => Err(status),
            Err(Broken::There(status)) => Ok(Err(self.failure(&status))),
        });
        outcome.await.map_err(|error| error.failure(&self.doing()))?
    }

    /// Hands each piece to `on_chunk`, to the end of the answer.
    async fn copy(
        &self,
        leader: &Leader,
        request: ReadLogRequest,
        on_chunk: &mut impl AsyncFnMut(LogChunk) -> std::io::Result<()>,
    ) -> Result<(), Broken> {
        let mut stream = client(leader).read_log(request).await.map_err(Broken::There)?.into_inner();
        while let Some(chunk) = stream.message().await.map_err(Broken::There)? {
            on_chunk(chunk).await.map_err(|error| Broken::Here(error.into()))?;
        }
        Ok(())
    }
}

/// Which side could not go on.
enum Broken {
    There(tonic::Status),
    Here(Failure),
}

/// Where the last `lines` lines of `data` begin; `None` when it holds fewer.
fn last_lines(data: &[u8], lines: u32) -> Option<usize> {
    if lines == 0 {
        return Some(data.len());
    }
    // The newline that ends the last line does not begin another one.
    let end = data.len() - usize::from(data.last() == Some(&b'\n'));
    data[..end]
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(lines as usize - 1)
        .map(|(newline, _)| newline + 1)
}

/// Tells whether a counter has moved since the last look.
#[derive(Debug)]
pub struct Movement {
    counter: Arc<AtomicU64>,
    seen: u64,
}

impl Movement {
    pub fn new(counter: Arc<AtomicU64>) -> Self {
        Self { counter, seen: 0 }
    }

    pub fn moved(&mut self) -> bool {
        let now = self.counter.load(Ordering::Relaxed);
        std::mem::replace(&mut self.seen, now) != now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_the_end() {
        let data = b"a\nbb\nccc\n";
        assert_eq!(last_lines(data, 1), Some(5));
        assert_eq!(last_lines(data, 2), Some(2));
        assert_eq!(last_lines(data, 3), None, "the first line may be cut: only its newline could tell");
        assert_eq!(last_lines(data, 0), Some(9));
        assert_eq!(last_lines(b"a\nunfinished", 1), Some(2));
        assert_eq!(last_lines(b"", 1), None);
        assert_eq!(last_lines(b"\n\n", 1), Some(1));
    }

    #[test]
    fn movement_is_seen_once() {
        let counter = Arc::new(AtomicU64::new(0));
        let mut movement = Movement::new(counter.clone());
        assert!(!movement.moved());
        counter.fetch_add(5, Ordering::Relaxed);
        assert!(movement.moved());
        assert!(!movement.moved());
    }
}
