//! The driver: plans a script's statements, runs them on the application's executors, writes the results.

pub mod cluster;
pub mod fleet;
pub mod jobs;
pub mod link;
pub mod mode;
pub mod pipelined;
pub mod progress;

use crate::output::ResultWriter;
use crate::session;
use crate::settings::{InvalidSetting, Settings};
use crate::sql::run::{StatementError, run_script};
use crate::sql::script::{self, SyntaxError};
use crate::transport::{ApplicationChannels, InvalidToken};
use cluster::ClusterBackend;
use datafusion::error::DataFusionError;
use firesteel_common::{DriverLaunch, InvalidMasterUrl, MasterUrl};
use link::{Link, LinkError};
use progress::ProgressBoard;
use std::io;
use std::time::Duration;

/// How long a driver tries to tell a master that its application has ended.
const FINISH_PATIENCE: Duration = Duration::from_secs(120);

/// Why an application failed, in the words that reach the user.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    MasterUrl(#[from] InvalidMasterUrl),
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error("cannot read the script {path}: {source}")]
    Script { path: String, source: io::Error },
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error("{}", crate::sql::run::friendly(.0))]
    Session(#[from] DataFusionError),
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// How a driver ended, for its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverEnd {
    Success,
    Failed,
    /// The master ended the application (killed, or given up on this driver).
    Stopped,
}

impl DriverEnd {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Stopped => 5,
        }
    }
}

/// Runs the application to its end and tells the master; a master that cannot be told is reported on standard error.
pub async fn run(launch: DriverLaunch) -> DriverEnd {
    let url: MasterUrl = match launch.master.parse() {
        Ok(url) => url,
        Err(error) => {
            eprintln!("error: {error}");
            return DriverEnd::Failed;
        }
    };
    let board = ProgressBoard::default();
    let link = Link::new(url, launch.application.clone(), launch.token.clone(), board.clone());
    let view = link.clone().start();
    let mut stopped = view.clone();
    let outcome = tokio::select! {
        outcome = run_application(&launch, board, view) => outcome,
        reason = wait_for_stop(&mut stopped) => {
            tracing::warn!("stopping: {reason}");
            return DriverEnd::Stopped;
        }
    };
    let (success, message) = match &outcome {
        Ok(()) => (true, String::new()),
        Err(DriverError::Statement(error)) if error.source.is_closed_output() => {
            (false, "the reader of the result went away".to_owned())
        }
        Err(error) => (false, error.to_string()),
    };
    if !success {
        tracing::error!("{message}");
    }
    if let Err(error) = link.finish(success, &message, FINISH_PATIENCE).await {
        eprintln!("error: the end of the application could not be reported: {error}");
        if !success {
            eprintln!("error: {message}");
        }
        return DriverEnd::Failed;
    }
    if success { DriverEnd::Success } else { DriverEnd::Failed }
}

async fn wait_for_stop(view: &mut tokio::sync::watch::Receiver<link::MasterView>) -> String {
    match view.wait_for(|v| v.stop.is_some()).await {
        Ok(view) => view.stop.clone().unwrap_or_default(),
        // The link ends only after it has said stop.
        Err(_) => std::future::pending().await,
    }
}

async fn run_application(
    launch: &DriverLaunch,
    board: ProgressBoard,
    view: tokio::sync::watch::Receiver<link::MasterView>,
) -> Result<(), DriverError> {
    let settings = Settings::parse(&launch.conf)?;
    let sql = std::fs::read_to_string(&launch.script)
        .map_err(|source| DriverError::Script { path: launch.resource.clone(), source })?;
    let statements = script::parse(&launch.resource, &sql)?;
    board.plan_jobs(statements.iter().map(|s| s.text.as_str()));

    let channels = ApplicationChannels::new(&launch.token)?;
    let runtime = session::runtime(&settings, None, &launch.scratch_dir)?;
    let backend = ClusterBackend::new(&launch.application, settings.clone(), channels, board, view);
    let ctx = backend.session(runtime)?;
    let mut writer = ResultWriter::new(io::BufWriter::with_capacity(64 << 10, io::stdout()), launch.output);
    run_script(
        &backend,
        &ctx,
        &launch.resource,
        statements,
        settings.working_directory.as_deref(),
        &mut writer,
    )
    .await?;
    Ok(())
}
