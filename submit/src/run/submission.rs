//! Handing an application in: once, however often it has to be said.

use super::Run;
use crate::display::{duration, one_line};
use crate::exit::{Exit, Failure, is_worth_repeating};
use crate::master::{self, Client};
use crate::output::Reporter;
use firesteel_common::DeployMode;
use firesteel_proto::channel::CHUNK_BYTES;
use firesteel_proto::masters::Leader;
use firesteel_proto::v1::{ArtifactChunk, SubmitApplicationRequest, SubmitApplicationResponse};
use std::time::Duration;
use tonic::{Code, Status};

/// How long an unconfirmed submission is repeated.
const PATIENCE: Duration = Duration::from_secs(60);

/// Submits the application, uploading its script first in cluster mode. When the master is lost before it has confirmed,
/// the same is said again to whoever leads then: with the same key and ticket, so that it counts once.
pub async fn submit(run: &Run, reporter: &Reporter) -> Result<SubmitApplicationResponse, Failure> {
    // Nothing has been sent so far: not to find a master is an ordinary failure.
    let leader = run.cluster.leader().await?;
    let mut submission = Submission::new(run, leader.ticket);
    let mut last = match submission.attempt(&leader).await {
        // Said for the first time, and known: somebody else's driver runs it, or has run it.
        Ok(answer) if answer.existed && run.settings.spec.deploy_mode == DeployMode::Client => {
            return Err(already_submitted(&answer.application_id, &run.key));
        }
        Ok(answer) => return Ok(answer),
        Err(status) if is_worth_repeating(&status) => {
            run.cluster.failed(&leader, Some(&status));
            master::reason(&status)
        }
        Err(status) => return Err(submission.failure(&status)),
    };
    reporter.note(&format!("the master was lost before it confirmed ({}); trying again …", one_line(&last)));
    let repeating =
        run.cluster.insist(|error| last = error.reason(), async |leader| submission.attempt(&leader).await);
    match tokio::time::timeout(PATIENCE, repeating).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(submission.failure(&status)),
        Err(_) => Err(unconfirmed(submission.sent, &last, &run.key)),
    }
}

/// A client-mode application runs with the `submit` that handed it in first: a second driver would do everything twice.
fn already_submitted(id: &str, key: &str) -> Failure {
    Failure::new(Exit::ApplicationFailed, format!("{id} was submitted with --idempotency-key {key} before"))
        .hint(format!("submit status {id} shows what became of it; give another run another key"))
}

/// What to do after a submission that nobody has confirmed.
pub fn repetition_hint(key: &str) -> String {
    format!("`submit list` shows whether it arrived; repeating it with --idempotency-key {key} is safe")
}

/// `sent`: the request itself has been on the way, not only the script.
fn unconfirmed(sent: bool, last: &str, key: &str) -> Failure {
    let patience = duration(PATIENCE);
    if sent {
        let message = format!(
            "the submission may or may not have arrived: no master confirmed it in {patience} ({last})"
        );
        Failure::new(Exit::Unreachable, message)
            .hint(format!("`submit list` shows it; repeating it with --idempotency-key {key} is safe"))
    } else {
        Failure::new(Exit::Unreachable, format!("no master took the script in {patience} ({last})"))
            .hint("nothing has been submitted; try again when the masters are up")
    }
}

struct Submission<'a> {
    run: &'a Run,
    ticket: u64,
    /// The script's hash once a master has taken it; empty in client mode, where it stays here.
    artifact: Option<String>,
    uploading: bool,
    sent: bool,
}

impl<'a> Submission<'a> {
    fn new(run: &'a Run, ticket: u64) -> Self {
        let artifact = match run.settings.spec.deploy_mode {
            DeployMode::Client => Some(String::new()),
            DeployMode::Cluster => None,
        };
        Self { run, ticket, artifact, uploading: false, sent: false }
    }

    /// Says everything to one master that it needs to hear.
    async fn attempt(&mut self, leader: &Leader) -> Result<SubmitApplicationResponse, Status> {
        let mut client = master::client(leader);
        let mut uploaded = false;
        loop {
            let artifact = match &self.artifact {
                Some(artifact) => artifact.clone(),
                None => {
                    self.uploading = true;
                    uploaded = true;
                    let artifact = upload(&mut client, self.run.script.text.as_bytes()).await?;
                    self.artifact.insert(artifact).clone()
                }
            };
            self.uploading = false;
            self.sent = true;
            let mut spec = self.run.settings.spec.clone();
            spec.artifact = artifact;
            let request = SubmitApplicationRequest {
                spec: Some((&spec).into()),
                key: self.run.key.clone(),
                ticket: self.ticket,
            };
            match client.submit_application(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // Another master took the script, and this one has not got it.
                Err(status) if lacks_script(&status) && !uploaded => self.artifact = None,
                Err(status) => return Err(status),
            }
        }
    }

    fn failure(&self, status: &Status) -> Failure {
        let doing = if self.uploading { "upload" } else { "submit" };
        let mut failure = Failure::from_status(status, &format!("{doing} {}", self.run.script.resource));
        match status.code() {
            Code::AlreadyExists => {
                failure.hint("a key names one submission: choose another --idempotency-key for another one")
            }
            // The cluster does not remember so far back whether it has run this: nothing that the user wrote is wrong.
            Code::OutOfRange => {
                failure.exit = Exit::ApplicationFailed;
                failure
            }
            _ => failure,
        }
    }
}

fn lacks_script(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("has not been uploaded")
}

async fn upload(client: &mut Client, script: &[u8]) -> Result<String, Status> {
    let chunks: Vec<ArtifactChunk> =
        script.chunks(CHUNK_BYTES).map(|chunk| ArtifactChunk { data: chunk.to_vec() }).collect();
    let answer = client.upload_artifact(tokio_stream::iter(chunks)).await?;
    Ok(answer.into_inner().sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unconfirmed_submission_names_its_key() {
        let failure = unconfirmed(true, "connection refused", "k1");
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("may or may not have arrived"), "{}", failure.message);
        assert!(failure.hint.contains("--idempotency-key k1 is safe"), "{}", failure.hint);
        let failure = unconfirmed(false, "connection refused", "k1");
        assert!(failure.hint.contains("nothing has been submitted"), "{}", failure.hint);
    }

    #[test]
    fn a_missing_script_is_told_from_other_refusals() {
        assert!(lacks_script(&Status::failed_precondition("the script ab has not been uploaded to x")));
        assert!(!lacks_script(&Status::failed_precondition("no worker is large enough")));
        assert!(!lacks_script(&Status::internal("the script ab has not been uploaded to x")));
    }
}
