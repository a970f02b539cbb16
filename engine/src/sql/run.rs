//! Runs the statements of a script in order: what changes the session happens here, what reads or writes data goes to
//! the [`Backend`].

use crate::output::{OutputError, ResultWriter};
use crate::settings::{MIN_TARGET_PARTITIONS, TOO_FEW_PARTITIONS};
use crate::sql::paths;
use crate::sql::script::ScriptStatement;
use arrow::array::{RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{DdlStatement, ExplainFormat, LogicalPlan};
use datafusion::prelude::SessionContext;
use datafusion_distributed::display_plan_ascii;
use firesteel_engine_core::JobError;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A statement that failed: where it stands and why.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {source}")]
pub struct StatementError {
    pub file: String,
    pub line: u64,
    pub source: RunError,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{}", friendly(.0))]
    DataFusion(#[from] DataFusionError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Path(#[from] paths::NoWorkingDirectory),
    #[error("{0}")]
    Unsupported(String),
    #[error("no files to read at {location}\nhint: {hint}")]
    EmptyLocation { location: String, hint: String },
    #[error("gave up after losing executors {restarts} times; the last error: {last}")]
    TooManyRestarts { restarts: u32, last: String },
    #[error(
        "lost an executor after rows had been written, so the query cannot start again: {0}\nhint: run it again; a larger --conf firesteel.result.bufferSize holds more of a result back"
    )]
    LostAfterRows(String),
    #[error("{0}")]
    Job(Box<JobError>),
    #[error("{0}")]
    NoExecutors(String),
    #[error("{0}")]
    Stopped(String),
}

/// Whoever executes queries: one process, or the executors of an application.
pub trait Backend {
    /// Runs a query and hands its batches to `sink` in order; returns once all of them were taken.
    fn query(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        job: u32,
        sink: &mut (dyn FnMut(Output) -> Result<(), OutputError> + Send),
    ) -> impl Future<Output = Result<(), RunError>> + Send;

    /// The plan as it would run, for `EXPLAIN`.
    fn explain(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
    ) -> impl Future<Output = Result<String, RunError>> + Send;

    /// Runs the query and returns its plan with what was measured; `None` when [`Backend::query`] does that itself.
    fn analyze(
        &self,
        _ctx: &SessionContext,
        _query: &LogicalPlan,
        _job: u32,
    ) -> impl Future<Output = Result<Option<String>, RunError>> + Send {
        std::future::ready(Ok(None))
    }

    fn job_started(&self, _job: u32) {}
    fn job_ended(&self, _job: u32, _rows: u64, _error: Option<&str>) {}
}

/// What a query gives its sink.
pub enum Output {
    /// Once, before the first batch.
    Schema(SchemaRef),
    Batch(RecordBatch),
}

/// Runs all statements; the first failure ends the script.
pub async fn run_script<B: Backend, W: Write + Send>(
    backend: &B,
    ctx: &SessionContext,
    file: &str,
    statements: Vec<ScriptStatement>,
    working_directory: Option<&Path>,
    writer: &mut ResultWriter<W>,
) -> Result<(), StatementError> {
    for (job, statement) in statements.into_iter().enumerate() {
        let (job, line) = (job as u32, statement.line);
        backend.job_started(job);
        let outcome = run_statement(backend, ctx, statement, job, working_directory, writer).await;
        match outcome {
            Ok(rows) => backend.job_ended(job, rows, None),
            Err(source) => {
                let line = source.line().unwrap_or(line);
                let error = StatementError { file: file.to_owned(), line, source };
                backend.job_ended(job, 0, Some(&error.source.to_string()));
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn run_statement<B: Backend, W: Write + Send>(
    backend: &B,
    ctx: &SessionContext,
    statement: ScriptStatement,
    job: u32,
    working_directory: Option<&Path>,
    writer: &mut ResultWriter<W>,
) -> Result<u64, RunError> {
    let mut parsed = statement.parsed;
    paths::make_absolute(&mut parsed, working_directory)?;
    let logical = ctx.state().statement_to_plan(parsed).await?;
    match &logical {
        LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(_)) => Err(RunError::Unsupported(
            "CREATE TABLE would keep its rows in the driver's memory\nhint: use CREATE VIEW for a name, or COPY (…) TO \
             '…' and CREATE EXTERNAL TABLE for a stored result"
                .to_owned(),
        )),
        LogicalPlan::Ddl(ddl) => {
            let created = match ddl {
                DdlStatement::CreateExternalTable(c) => {
                    check_locations(ctx, &c.locations).await?;
                    Some((c.name.clone(), c.schema.fields().is_empty(), c.locations.clone()))
                }
                _ => None,
            };
            ctx.execute_logical_plan(logical).await?.collect().await?;
            if let Some((name, inferred, locations)) = created
                && inferred
                && ctx.table_provider(name.clone()).await?.schema().fields().is_empty()
            {
                ctx.deregister_table(name)?;
                return Err(empty_location(&locations));
            }
            Ok(0)
        }
        LogicalPlan::Statement(_) => {
            ctx.execute_logical_plan(logical).await?.collect().await?;
            if ctx.copied_config().target_partitions() < MIN_TARGET_PARTITIONS {
                return Err(RunError::Unsupported(TOO_FEW_PARTITIONS.to_owned()));
            }
            Ok(0)
        }
        LogicalPlan::Explain(e) if e.explain_format == ExplainFormat::Indent && !e.verbose => {
            let optimized = ctx.state().optimize(&e.plan)?;
            let physical = backend.explain(ctx, &e.plan).await?;
            let logical = optimized.display_indent().to_string();
            let schema = Arc::new(e.schema.as_arrow().clone());
            write_plans(writer, schema, &[("logical_plan", logical), ("physical_plan", physical)])
        }
        LogicalPlan::Analyze(a) => match backend.analyze(ctx, &a.input, job).await? {
            Some(measured) => {
                let schema = Arc::new(a.schema.as_arrow().clone());
                write_plans(writer, schema, &[("Plan with Metrics", measured)])
            }
            None => run_query(backend, ctx, &logical, job, writer).await,
        },
        LogicalPlan::Copy(_) | LogicalPlan::Dml(_) => {
            let mut written = 0;
            backend
                .query(ctx, &logical, job, &mut |output| {
                    if let Output::Batch(batch) = output {
                        written += written_rows(&batch);
                    }
                    Ok(())
                })
                .await?;
            let plural = if written == 1 { "" } else { "s" };
            writer.note(&format!("{written} row{plural} written"))?;
            Ok(written)
        }
        _ => run_query(backend, ctx, &logical, job, writer).await,
    }
}

/// Runs a query and writes its rows.
async fn run_query<B: Backend, W: Write + Send>(
    backend: &B,
    ctx: &SessionContext,
    query: &LogicalPlan,
    job: u32,
    writer: &mut ResultWriter<W>,
) -> Result<u64, RunError> {
    let mut result = None;
    backend
        .query(ctx, query, job, &mut |output| {
            match output {
                Output::Schema(schema) => result = Some(writer.begin(schema)?),
                Output::Batch(batch) => {
                    if let Some(result) = &mut result {
                        writer.write(result, &batch)?;
                    }
                }
            }
            Ok(())
        })
        .await?;
    match result {
        Some(result) => Ok(writer.end(result)?),
        None => Ok(0),
    }
}

/// The two-column result of `EXPLAIN`.
fn write_plans<W: Write>(
    writer: &mut ResultWriter<W>,
    schema: SchemaRef,
    plans: &[(&str, String)],
) -> Result<u64, RunError> {
    let kinds = StringArray::from_iter_values(plans.iter().map(|(kind, _)| kind));
    let texts = StringArray::from_iter_values(plans.iter().map(|(_, plan)| plan));
    let batch = RecordBatch::try_new(schema, vec![Arc::new(kinds), Arc::new(texts)])
        .map_err(DataFusionError::from)?;
    let mut result = writer.begin(batch.schema())?;
    writer.write(&mut result, &batch)?;
    Ok(writer.end(result)?)
}

/// The count that a writing plan returns as its only value.
fn written_rows(batch: &RecordBatch) -> u64 {
    batch
        .columns()
        .first()
        .and_then(|column| column.as_any().downcast_ref::<UInt64Array>())
        .map_or(0, |counts| counts.iter().flatten().sum())
}

/// A local path that does not exist is reported before DataFusion makes an empty table of it.
async fn check_locations(ctx: &SessionContext, locations: &[String]) -> Result<(), RunError> {
    for location in locations {
        let url = ListingTableUrl::parse(location)?;
        // The store's own errors (no credentials, unknown scheme) are better than "no files".
        ctx.runtime_env().object_store(&url)?;
    }
    Ok(())
}

fn empty_location(locations: &[String]) -> RunError {
    let location = locations.join(", ");
    let hint = match locations.iter().all(|l| !l.contains("://") && !Path::new(l).exists()) {
        true => "the path does not exist on the machine where the driver runs".to_owned(),
        false => "are there files with the format's extension? name the columns to create an empty table"
            .to_owned(),
    };
    RunError::EmptyLocation { location, hint }
}

/// Shows a distributed plan stage by stage, anything else indented.
pub fn show_plan(physical: &dyn datafusion::physical_plan::ExecutionPlan) -> String {
    display_plan_ascii(physical, false).trim_end().to_owned()
}

impl RunError {
    /// The line that DataFusion's own diagnostic points at.
    fn line(&self) -> Option<u64> {
        match self {
            Self::DataFusion(error) => error.diagnostic()?.span.map(|span| span.start.line),
            _ => None,
        }
    }

    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.is_closed())
    }
}

/// An error without DataFusion's layers and backtraces; the deepest layer that says what happened.
pub fn friendly(error: &DataFusionError) -> String {
    let text = match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => friendly(inner),
        DataFusionError::Shared(inner) => friendly(inner),
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => friendly(inner),
            None => match inner.downcast_ref::<tonic::Status>() {
                Some(status) => format!("{}: {}", status.code().description(), status.message()),
                None => inner.to_string(),
            },
        },
        other => other.strip_backtrace(),
    };
    text.trim_end().to_owned()
}
