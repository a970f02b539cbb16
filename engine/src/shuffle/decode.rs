//! Arrow IPC streams that arrive in pieces.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;

/// Takes bytes, gives batches.
#[derive(Default)]
pub struct Decoder {
    decoder: StreamDecoder,
    pending: Buffer,
    begun: bool,
}

impl Decoder {
    /// More bytes; only once [`Self::next`] has said that it needs some.
    pub fn feed(&mut self, bytes: impl Into<Buffer>) {
        self.pending = bytes.into();
        self.begun = true;
    }

    /// The next batch, or `None` when more bytes are needed.
    pub fn next(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        self.decoder.decode(&mut self.pending)
    }

    /// All bytes have been fed: did the stream end where streams end?
    pub fn finish(&mut self) -> Result<(), ArrowError> {
        if self.begun { self.decoder.finish() } else { Ok(()) }
    }
}
