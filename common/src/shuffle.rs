//! The format of a map output: how an executor lays it out, how a worker finds a partition in it.
//!
//! ```text
//! group 0: bytes of partition 0, of partition 1, …      written each time the task's buffer is full
//! group 1: bytes of partition 0, of partition 1, …
//! index:   u32 partitions, u32 groups, then per group partitions + 1 offsets (u64), all little-endian
//! trailer: u64 length of the index, u32 CRC-32 of the index, u32 magic
//! ```
//!
//! The bytes of one partition, all groups one after another, are one Arrow IPC stream; a partition without rows has none.
//! A file is written under a temporary name and renamed, so that whoever finds it finds it whole.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of the trailer.
pub const TRAILER_BYTES: u64 = 16;
/// A longer index is taken for damage: whoever reads one has to hold it in memory. Enough for 400 groups of 10,000 partitions.
pub const INDEX_BYTES_MAX: u64 = 32 << 20;
const MAGIC: u32 = 0x4653_4f31;
/// Ends the name of a finished output.
pub const OUTPUT_SUFFIX: &str = ".shuffle";

/// Which attempt at which task wrote an output. Its text form is a relative path of harmless components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputId {
    /// The run of a query, unique within the application: 32 hexadecimal digits.
    pub query: u128,
    pub stage: u32,
    pub task: u32,
    pub attempt: u32,
}

/// A text that names no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name a map output (QUERY/STAGE-TASK-ATTEMPT)")]
pub struct InvalidOutputId(pub String);

impl std::fmt::Display for OutputId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}/{}-{}-{}", self.query, self.stage, self.task, self.attempt)
    }
}

impl FromStr for OutputId {
    type Err = InvalidOutputId;

    fn from_str(text: &str) -> Result<Self, InvalidOutputId> {
        let parse = || {
            let (query, rest) = text.split_once('/')?;
            let query = (query.len() == 32).then(|| u128::from_str_radix(query, 16).ok())??;
            let mut numbers = rest.split('-').map(|number| number.parse::<u32>().ok());
            let id =
                Self { query, stage: numbers.next()??, task: numbers.next()??, attempt: numbers.next()?? };
            // One text per output: no leading zeros, signs or capitals.
            (numbers.next().is_none() && id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| InvalidOutputId(text.to_owned()))
    }
}

impl OutputId {
    /// Below the application's shuffle directory.
    pub fn relative_path(&self) -> PathBuf {
        PathBuf::from(format!("{self}{OUTPUT_SUFFIX}"))
    }
}

/// Where each partition's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputIndex {
    partitions: usize,
    /// `partitions + 1` offsets per group.
    offsets: Vec<u64>,
}

/// An index that cannot be what a writer wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIndex {
    #[error("no map output: the trailer is not one")]
    Magic,
    #[error("damaged map output: the index does not match its checksum")]
    Checksum,
    #[error("damaged map output: {0}")]
    Shape(&'static str),
}

impl OutputIndex {
    pub fn new(partitions: usize) -> Self {
        Self { partitions, offsets: Vec::new() }
    }

    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Adds a group that begins at `start` and has so many bytes per partition.
    pub fn push_group(&mut self, start: u64, lengths: impl IntoIterator<Item = u64>) {
        let mut offset = start;
        self.offsets.push(offset);
        let before = self.offsets.len();
        for length in lengths.into_iter().take(self.partitions) {
            offset += length;
            self.offsets.push(offset);
        }
        self.offsets.resize(before + self.partitions, offset);
    }

    /// The pieces of one partition, in order; none for a partition that does not exist.
    pub fn pieces(&self, partition: usize) -> impl Iterator<Item = Range<u64>> + '_ {
        let known = partition < self.partitions;
        self.offsets
            .chunks_exact(self.partitions + 1)
            .filter(move |_| known)
            .map(move |group| group[partition]..group[partition + 1])
            .filter(|piece| !piece.is_empty())
    }

    /// What it occupies while it is kept.
    pub fn memory_bytes(&self) -> usize {
        self.offsets.len() * size_of::<u64>()
    }

    /// Bytes of one partition.
    pub fn bytes(&self, partition: usize) -> u64 {
        self.pieces(partition).map(|piece| piece.end - piece.start).sum()
    }

    /// Index and trailer, to be appended to the groups.
    pub fn encode(&self) -> Vec<u8> {
        let groups = self.offsets.len() / (self.partitions + 1);
        let mut out = Vec::with_capacity(8 + self.offsets.len() * 8 + TRAILER_BYTES as usize);
        out.extend((self.partitions as u32).to_le_bytes());
        out.extend((groups as u32).to_le_bytes());
        for offset in &self.offsets {
            out.extend(offset.to_le_bytes());
        }
        let (length, crc) = (out.len() as u64, crc32(&out));
        out.extend(length.to_le_bytes());
        out.extend(crc.to_le_bytes());
        out.extend(MAGIC.to_le_bytes());
        out
    }

    /// Where the index is, told by the trailer of a file of `file_bytes`, and its checksum.
    pub fn locate(
        trailer: &[u8; TRAILER_BYTES as usize],
        file_bytes: u64,
    ) -> Result<(Range<u64>, u32), InvalidIndex> {
        let [length @ .., _, _, _, _, _, _, _, _] = trailer;
        let word =
            |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
        if word(12) != MAGIC {
            return Err(InvalidIndex::Magic);
        }
        let end = file_bytes.checked_sub(TRAILER_BYTES).ok_or(InvalidIndex::Shape("too short"))?;
        let length = u64::from_le_bytes(*length);
        if length > INDEX_BYTES_MAX {
            return Err(InvalidIndex::Shape("its index is longer than any"));
        }
        let start = end.checked_sub(length).ok_or(InvalidIndex::Shape("too short"))?;
        Ok((start..end, word(8)))
    }

    /// Reads what [`Self::encode`] wrote before the trailer; `data_end` is where the index begins in the file.
    pub fn decode(index: &[u8], crc: u32, data_end: u64) -> Result<Self, InvalidIndex> {
        if crc32(index) != crc {
            return Err(InvalidIndex::Checksum);
        }
        let (head, body) = index.split_at_checked(8).ok_or(InvalidIndex::Shape("no head"))?;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (partitions, groups) = (word(0), word(4));
        let wanted = (partitions + 1).checked_mul(groups).and_then(|n| n.checked_mul(8));
        if wanted != Some(body.len()) {
            return Err(InvalidIndex::Shape("its index has another length"));
        }
        let offsets: Vec<u64> = body
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        let ascending = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if !ascending || offsets.last().is_some_and(|&last| last > data_end) {
            return Err(InvalidIndex::Shape("its offsets do not ascend"));
        }
        Ok(Self { partitions, offsets })
    }
}

/// CRC-32 (IEEE), bit by bit over a table of 16: indexes are small, and this crate has no dependency for it.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0u32; 16];
        let mut n = 0;
        while n < 16 {
            let (mut c, mut bit) = (n as u32, 0);
            while bit < 4 {
                c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
                bit += 1;
            }
            table[n] = c;
            n += 1;
        }
        table
    };
    !bytes.iter().fold(!0u32, |crc, &byte| {
        let crc = TABLE[((crc ^ u32::from(byte)) & 15) as usize] ^ (crc >> 4);
        TABLE[((crc ^ (u32::from(byte) >> 4)) & 15) as usize] ^ (crc >> 4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reread(index: &OutputIndex, data_end: u64) -> Result<OutputIndex, InvalidIndex> {
        let bytes = index.encode();
        let trailer: [u8; 16] = bytes[bytes.len() - 16..].try_into().unwrap();
        let (range, crc) = OutputIndex::locate(&trailer, data_end + bytes.len() as u64)?;
        assert_eq!(range.start, data_end);
        OutputIndex::decode(&bytes[..bytes.len() - 16], crc, data_end)
    }

    #[test]
    fn pieces_follow_the_groups() {
        let mut index = OutputIndex::new(3);
        index.push_group(0, [10, 0, 5]);
        index.push_group(15, [1, 2]);
        let index = reread(&index, 18).unwrap();
        assert_eq!(index.pieces(0).collect::<Vec<_>>(), [0..10, 15..16]);
        assert!(index.pieces(1).eq(std::iter::once(16..18)));
        assert!(index.pieces(2).eq(std::iter::once(10..15)));
        assert_eq!(index.bytes(0), 11);
        assert_eq!(index.pieces(3).count(), 0);
    }

    #[test]
    fn an_output_without_rows_has_an_index() {
        assert_eq!(reread(&OutputIndex::new(4), 0).unwrap().bytes(3), 0);
    }

    #[test]
    fn damage_is_noticed() {
        let mut index = OutputIndex::new(1);
        index.push_group(0, [8]);
        assert_eq!(reread(&index, 4), Err(InvalidIndex::Shape("its offsets do not ascend")));
        let mut bytes = index.encode();
        bytes[9] ^= 1;
        assert_eq!(OutputIndex::decode(&bytes[..24], 1, 8), Err(InvalidIndex::Checksum));
        assert_eq!(OutputIndex::locate(&[0; 16], 100), Err(InvalidIndex::Magic));
        let mut trailer = *bytes.last_chunk().unwrap();
        trailer[..8].copy_from_slice(&(INDEX_BYTES_MAX + 1).to_le_bytes());
        assert_eq!(
            OutputIndex::locate(&trailer, u64::MAX),
            Err(InvalidIndex::Shape("its index is longer than any"))
        );
        let mut huge = Vec::from(u32::MAX.to_le_bytes());
        huge.extend(u32::MAX.to_le_bytes());
        assert_eq!(
            OutputIndex::decode(&huge, crc32(&huge), 0),
            Err(InvalidIndex::Shape("its index has another length"))
        );
    }

    #[test]
    fn the_checksum_is_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn only_one_text_names_an_output() {
        let id = OutputId { query: 0xabc, stage: 1, task: 20, attempt: 3 };
        let text = id.to_string();
        assert_eq!(text, "00000000000000000000000000000abc/1-20-3");
        assert_eq!(text.parse(), Ok(id));
        for bad in [
            "",
            "../1-2-3",
            "00000000000000000000000000000abc/1-2",
            "00000000000000000000000000000abc/1-2-3-4",
            "00000000000000000000000000000ABC/1-2-3",
            "00000000000000000000000000000abc/01-2-3",
            "00000000000000000000000000000abc/1-2-3/../x",
            "+0000000000000000000000000000abc/1-2-3",
        ] {
            assert!(bad.parse::<OutputId>().is_err(), "{bad}");
        }
    }
}
