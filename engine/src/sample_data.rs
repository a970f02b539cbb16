//! TPC-H and TPC-DS tables as Parquet, for the quickstart, the tests and the benchmark.

use arrow::array::{RecordBatch, RecordBatchReader};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tpcdsgen::config::SessionBuilder;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

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
    #[error("cannot make TPC-DS data: {0}")]
    Tpcds(String),
}

/// Whose tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Benchmark {
    Tpch,
    Tpcds,
}

const TPCH_TABLES: [&str; 8] =
    ["nation", "region", "part", "supplier", "partsupp", "customer", "orders", "lineitem"];

const TPCDS_TABLES: [&str; 24] = [
    "call_center",
    "catalog_page",
    "catalog_returns",
    "catalog_sales",
    "customer",
    "customer_address",
    "customer_demographics",
    "date_dim",
    "household_demographics",
    "income_band",
    "inventory",
    "item",
    "promotion",
    "reason",
    "ship_mode",
    "store",
    "store_returns",
    "store_sales",
    "time_dim",
    "warehouse",
    "web_page",
    "web_returns",
    "web_sales",
    "web_site",
];

/// Rows per row group: small enough that a table of a small scale still splits.
const ROW_GROUP_ROWS: usize = 256 * 1024;

/// Rows per batch of TPC-DS, which are dealt to the files of a table in turn: small, so that small tables are dealt too.
const DEALT_ROWS: usize = 1024;

type Batches = Box<dyn RecordBatchReader>;

impl Benchmark {
    /// The tables, in the order they are written.
    pub fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Tpch => &TPCH_TABLES,
            Self::Tpcds => &TPCDS_TABLES,
        }
    }

    fn write_table(self, dir: &Path, table: &str, scale: f64, parts: i32) -> Result<(), SampleError> {
        let parts = if matches!(table, "nation" | "region") { 1 } else { parts.max(1) };
        let paths: Vec<PathBuf> =
            (1..=parts).map(|part| dir.join(format!("{table}.{part}.parquet"))).collect();
        match self {
            Self::Tpch => (1..=parts).zip(&paths).try_for_each(|(part, path)| {
                deal(std::slice::from_ref(path), tpch(table, scale, part, parts))
            }),
            // Its generator splits nothing below a million rows, and returns hang on sales: files are dealt rows instead.
            Self::Tpcds => deal(&paths, tpcds(table, scale)?),
        }
    }
}

/// Writes `DIR/TABLE/TABLE.N.parquet` for all tables; a table that is there already is left alone, so that the command
/// can be repeated. At most `parts` files per table.
pub fn write(benchmark: Benchmark, dir: &Path, scale: f64, parts: i32) -> Result<(), SampleError> {
    if !(0.001..=1000.0).contains(&scale) {
        return Err(SampleError::Scale(scale));
    }
    for table in benchmark.tables() {
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
        benchmark.write_table(&partial, table, scale, parts)?;
        fs::rename(&partial, &target).map_err(|e| io_error(&target, e))?;
    }
    Ok(())
}

fn tpch(table: &str, scale: f64, part: i32, parts: i32) -> Batches {
    use tpchgen_arrow as tables;
    macro_rules! rows {
        ($table:ident, $generator:ident) => {
            Box::new(tables::$table::new($generator::new(scale, part, parts)).with_batch_size(8192))
        };
    }
    match table {
        "nation" => rows!(NationArrow, NationGenerator),
        "region" => rows!(RegionArrow, RegionGenerator),
        "part" => rows!(PartArrow, PartGenerator),
        "supplier" => rows!(SupplierArrow, SupplierGenerator),
        "partsupp" => rows!(PartSuppArrow, PartSuppGenerator),
        "customer" => rows!(CustomerArrow, CustomerGenerator),
        "orders" => rows!(OrderArrow, OrderGenerator),
        _ => rows!(LineItemArrow, LineItemGenerator),
    }
}

fn tpcds(table: &str, scale: f64) -> Result<Batches, SampleError> {
    use tpcdsgen_arrow as tables;
    let session = SessionBuilder::new()
        .with_scale_factor(scale)
        .build()
        .map_err(|e| SampleError::Tpcds(e.to_string()))?;
    macro_rules! rows {
        ($table:ident) => {
            Box::new(tables::$table::new(session).with_batch_size(DEALT_ROWS))
        };
    }
    Ok(match table {
        "call_center" => rows!(CallCenterArrow),
        "catalog_page" => rows!(CatalogPageArrow),
        "catalog_returns" => rows!(CatalogReturnsArrow),
        "catalog_sales" => rows!(CatalogSalesArrow),
        "customer" => rows!(CustomerArrow),
        "customer_address" => rows!(CustomerAddressArrow),
        "customer_demographics" => rows!(CustomerDemographicsArrow),
        "date_dim" => rows!(DateDimArrow),
        "household_demographics" => rows!(HouseholdDemographicsArrow),
        "income_band" => rows!(IncomeBandArrow),
        "inventory" => rows!(InventoryArrow),
        "item" => rows!(ItemArrow),
        "promotion" => rows!(PromotionArrow),
        "reason" => rows!(ReasonArrow),
        "ship_mode" => rows!(ShipModeArrow),
        "store" => rows!(StoreArrow),
        "store_returns" => rows!(StoreReturnsArrow),
        "store_sales" => rows!(StoreSalesArrow),
        "time_dim" => rows!(TimeDimArrow),
        "warehouse" => rows!(WarehouseArrow),
        "web_page" => rows!(WebPageArrow),
        "web_returns" => rows!(WebReturnsArrow),
        "web_sales" => rows!(WebSalesArrow),
        _ => rows!(WebSiteArrow),
    })
}

/// Writes batches to the files in turn; a file that would get none is not made, unless it is the first.
fn deal(paths: &[PathBuf], batches: Batches) -> Result<(), SampleError> {
    let schema = batches.schema();
    let open = |path: &PathBuf| {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|source| SampleError::Io { path: name.clone(), source })?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .build();
        ArrowWriter::try_new(file, schema.clone(), Some(properties))
            .map_err(|source| SampleError::Parquet { path: name, source })
    };
    let mut writers = vec![open(&paths[0])?];
    for (i, batch) in batches.enumerate() {
        let at = i % paths.len();
        let name = || paths[at].display().to_string();
        let batch: RecordBatch = batch.map_err(|source| SampleError::Arrow { path: name(), source })?;
        if at == writers.len() {
            writers.push(open(&paths[at])?);
        }
        writers[at].write(&batch).map_err(|source| SampleError::Parquet { path: name(), source })?;
    }
    for (writer, path) in writers.into_iter().zip(paths) {
        writer.close().map_err(|source| SampleError::Parquet { path: path.display().to_string(), source })?;
    }
    Ok(())
}
