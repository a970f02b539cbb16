//! Reading the log of a process through the master, byte for byte, across lost connections.

use crate::exit::{Failure, is_connection_loss};
use crate::master::{Backoff, Client, first_line};
use crate::output::Output;
use firesteel_common::MasterUrl;
use firesteel_proto::v1::{LogStream, ProcessId, ReadLogRequest};
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

    fn failure(&self, status: &tonic::Status) -> Failure {
        Failure::from_status(
            status,
            &format!("read the log of {} {}", self.process.application_id, self.process.name),
        )
    }

    /// Copies everything from `offset` on until the process has ended and all it wrote has been copied.
    /// `copied` counts the bytes, for somebody who wonders whether the log still moves.
    pub async fn follow(
        &self,
        url: &MasterUrl,
        mut client: Client,
        mut offset: u64,
        output: &mut Output,
        copied: &AtomicU64,
        mut on_loss: impl FnMut(&str),
    ) -> Result<(), Failure> {
        let mut backoff = Backoff::new();
        loop {
            let request = ReadLogRequest { offset, follow: true, ..self.request() };
            let status = match client.read_log(request).await {
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(chunk)) => {
                                output.write(&chunk.data).await?;
                                offset = chunk.next_offset;
                                copied.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
                                backoff = Backoff::new();
                            }
                            Ok(None) => return Ok(output.finish().await?),
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            if !is_connection_loss(&status) {
                return Err(self.failure(&status));
            }
            on_loss(&first_line(&status));
            client = backoff.reconnect(url).await;
        }
    }

    /// What is there now, or its last `lines` lines; and the offset after it.
    pub async fn read(
        &self,
        client: &mut Client,
        lines: Option<u32>,
        output: &mut Output,
    ) -> Result<u64, Failure> {
        let Some(lines) = lines else {
            let mut offset = 0;
            let mut stream = self.open(client, 0).await?;
            while let Some(chunk) = stream.message().await.map_err(|status| self.failure(&status))? {
                output.write(&chunk.data).await?;
                offset = chunk.next_offset;
            }
            output.finish().await?;
            return Ok(offset);
        };
        let (data, offset) = self.tail(client, lines).await?;
        output.write(&data).await?;
        output.finish().await?;
        Ok(offset)
    }

    /// The last `lines` lines, and the offset after them.
    pub async fn tail(&self, client: &mut Client, lines: u32) -> Result<(Vec<u8>, u64), Failure> {
        const TAIL_BYTES_MAX: u64 = 1 << 30;
        // The protocol counts bytes; a longer piece is asked for until it holds enough lines.
        let mut tail_bytes = (u64::from(lines) * 256).clamp(64 << 10, TAIL_BYTES_MAX);
        loop {
            let mut stream = self.open(client, tail_bytes).await?;
            let (mut data, mut offset) = (Vec::new(), 0);
            while let Some(chunk) = stream.message().await.map_err(|status| self.failure(&status))? {
                data.extend_from_slice(&chunk.data);
                offset = chunk.next_offset;
            }
            let whole = (data.len() as u64) < tail_bytes;
            match last_lines(&data, lines) {
                Some(start) => return Ok((data.split_off(start), offset)),
                None if whole || tail_bytes >= TAIL_BYTES_MAX => return Ok((data, offset)),
                None => tail_bytes *= 4,
            }
        }
    }

    async fn open(
        &self,
        client: &mut Client,
        tail_bytes: u64,
    ) -> Result<tonic::Streaming<firesteel_proto::v1::LogChunk>, Failure> {
        let request = ReadLogRequest { tail_bytes, ..self.request() };
        Ok(client.read_log(request).await.map_err(|status| self.failure(&status))?.into_inner())
    }
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
