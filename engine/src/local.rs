//! A script in one DataFusion process: the yardstick for the cluster, and a way to try a script without one.

use crate::output::{OutputError, ResultWriter};
use crate::session;
use crate::settings::Settings;
use crate::sql::run::{Backend, Output, RunError, run_script, show_plan};
use crate::sql::script;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionContext;
use firesteel_common::OutputFormat;
use futures::TryStreamExt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

pub struct LocalRun {
    pub script: PathBuf,
    pub settings: Settings,
    pub cores: usize,
    pub output: OutputFormat,
    pub scratch: PathBuf,
}

/// How long each statement took, in order.
pub type Timings = Vec<Duration>;

#[derive(Default)]
struct LocalBackend {
    started: Mutex<Option<Instant>>,
    timings: Mutex<Timings>,
}

impl Backend for LocalBackend {
    async fn query(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        _job: u32,
        sink: &mut (dyn FnMut(Output) -> Result<(), OutputError> + Send),
    ) -> Result<(), RunError> {
        let state = ctx.state();
        let plan = state.create_physical_plan(query).await?;
        let schema = plan.schema();
        let mut batches = execute_stream(plan, state.task_ctx())?;
        let mut schema = Some(schema);
        while let Some(batch) = batches.try_next().await? {
            if let Some(schema) = schema.take() {
                sink(Output::Schema(schema))?;
            }
            sink(Output::Batch(batch))?;
        }
        if let Some(schema) = schema {
            sink(Output::Schema(schema))?;
        }
        Ok(())
    }

    async fn explain(&self, ctx: &SessionContext, query: &LogicalPlan) -> Result<String, RunError> {
        Ok(show_plan(ctx.state().create_physical_plan(query).await?.as_ref()))
    }

    fn job_started(&self, _job: u32) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn job_ended(&self, _job: u32, _rows: u64, _error: Option<&str>) {
        if let Some(started) = self.started.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.timings.lock().unwrap_or_else(PoisonError::into_inner).push(started.elapsed());
        }
    }
}

/// Runs the script and returns the statements' durations; the error is ready to print.
pub async fn run(run: LocalRun) -> Result<Timings, String> {
    let name = run.script.display().to_string();
    let sql = std::fs::read_to_string(&run.script).map_err(|e| format!("cannot read {name}: {e}"))?;
    let statements = script::parse(&name, &sql).map_err(|e| e.to_string())?;
    let runtime = session::runtime(&run.settings, None, &run.scratch).map_err(|e| e.to_string())?;
    let config = session::config(&run.settings, run.cores).map_err(|e| e.to_string())?;
    let ctx = SessionContext::new_with_config_rt(config, runtime);
    let backend = LocalBackend::default();
    let mut writer = ResultWriter::new(io::BufWriter::new(io::stdout()), run.output);
    let here = std::env::current_dir().ok();
    let base: Option<&Path> = run.settings.working_directory.as_deref().or(here.as_deref());
    run_script(&backend, &ctx, &name, statements, base, &mut writer).await.map_err(|e| e.to_string())?;
    Ok(backend.timings.into_inner().unwrap_or_else(PoisonError::into_inner))
}
