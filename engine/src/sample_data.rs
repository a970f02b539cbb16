//! TPC-H tables as Parquet, for the quickstart, the tests and the benchmark.

use arrow::array::{RecordBatch, RecordBatchReader};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow as tables;

#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error("cannot write {path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Parquet { path: String, source: parquet::errors::ParquetError },
    #[error("cannot make the data of {path}: {source}")]
    Arrow { path: String, source: arrow::error::ArrowError },
    #[error("scale {0}: expected a number from 0.001 to 1000")]
    Scale(f64),
}

/// The tables, in the order they are written.
pub const TABLES: [&str; 8] =
    ["nation", "region", "part", "supplier", "partsupp", "customer", "orders", "lineitem"];

/// Rows per row group: small enough that a table of a small scale still splits.
const ROW_GROUP_ROWS: usize = 256 * 1024;

/// Writes `DIR/TABLE/TABLE.N.parquet` for all tables; a table that is there already is left alone, so that the command
/// can be repeated. `parts` files per large table.
pub fn write(dir: &Path, scale: f64, parts: i32) -> Result<(), SampleError> {
    if !(0.001..=1000.0).contains(&scale) {
        return Err(SampleError::Scale(scale));
    }
    for table in TABLES {
        let small = matches!(table, "nation" | "region");
        let parts = if small { 1 } else { parts.max(1) };
        let target = dir.join(table);
        if target.exists() {
            continue;
        }
        // Written beside and renamed: an interrupted run leaves no half table under the final name.
        let partial = dir.join(format!(".{table}.partial"));
        let io_error = |path: &Path, source| SampleError::Io { path: path.display().to_string(), source };
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(|e| io_error(&partial, e))?;
        }
        fs::create_dir_all(&partial).map_err(|e| io_error(&partial, e))?;
        for part in 1..=parts {
            let path = partial.join(format!("{table}.{part}.parquet"));
            write_part(&path, table, scale, part, parts)?;
        }
        fs::rename(&partial, &target).map_err(|e| io_error(&target, e))?;
    }
    Ok(())
}

fn write_part(path: &Path, table: &str, scale: f64, part: i32, parts: i32) -> Result<(), SampleError> {
    match table {
        "nation" => drain(
            path,
            tables::NationArrow::new(NationGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
        "region" => drain(
            path,
            tables::RegionArrow::new(RegionGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
        "part" => {
            drain(path, tables::PartArrow::new(PartGenerator::new(scale, part, parts)).with_batch_size(8192))
        }
        "supplier" => drain(
            path,
            tables::SupplierArrow::new(SupplierGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
        "partsupp" => drain(
            path,
            tables::PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
        "customer" => drain(
            path,
            tables::CustomerArrow::new(CustomerGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
        "orders" => drain(
            path,
            tables::OrderArrow::new(OrderGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
        _ => drain(
            path,
            tables::LineItemArrow::new(LineItemGenerator::new(scale, part, parts)).with_batch_size(8192),
        ),
    }
}

fn drain(path: &Path, batches: impl RecordBatchReader) -> Result<(), SampleError> {
    let name = || path.display().to_string();
    let parquet_error = |source| SampleError::Parquet { path: name(), source };
    let file = File::create(path).map_err(|source| SampleError::Io { path: name(), source })?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(file, batches.schema(), Some(properties)).map_err(parquet_error)?;
    for batch in batches {
        let batch: RecordBatch = batch.map_err(|source| SampleError::Arrow { path: name(), source })?;
        writer.write(&batch).map_err(parquet_error)?;
    }
    writer.close().map_err(parquet_error)?;
    Ok(())
}
