//! `submit kill ID…`

use super::current;
use crate::display::one_line;
use crate::exit::{Exit, Failure, may_have_been_done};
use crate::master::{Cluster, RequestError, client};
use crate::output::print;
use firesteel_proto::v1::KillApplicationRequest;
use tonic::{Code, Status};

/// Kills each; one that cannot be killed does not save the others.
pub async fn run(cluster: &Cluster, ids: &[String]) -> Result<Exit, Failure> {
    let user = crate::run::user();
    let mut first_failure: Option<Failure> = None;
    for id in ids {
        match kill(cluster, id, &user).await {
            Ok(killed) => print(&format!("{} killed\n", one_line(&killed)))?,
            Err(failure) => match &first_failure {
                None => first_failure = Some(failure),
                Some(_) => failure.report(),
            },
        }
    }
    first_failure.map_or(Ok(Exit::Success), Err)
}

/// The full id of what was killed.
async fn kill(cluster: &Cluster, id: &str, user: &str) -> Result<String, Failure> {
    let mut unsure = false;
    let asked = cluster
        .request(async |leader| {
            let request = KillApplicationRequest { application_id: id.to_owned(), user: user.to_owned() };
            let answer = client(&leader).kill_application(request).await;
            unsure |= answer.as_ref().is_err_and(may_have_been_done);
            answer
        })
        .await;
    match asked {
        Ok(answer) => Ok(answer.into_inner().application_id),
        // The answer to an earlier attempt was lost, not the kill.
        Err(RequestError::Status(status)) if unsure && is_killed(&status) => {
            Ok(current(cluster, id).await.map_or_else(|_| id.to_owned(), |status| status.application_id))
        }
        Err(error) => {
            let ended = matches!(&error, RequestError::Status(s) if s.code() == Code::FailedPrecondition);
            let mut failure = error.failure(&format!("kill {id}"));
            if ended {
                // It has ended: nothing to do with what the cluster can hold.
                failure.exit = Exit::ApplicationFailed;
            }
            Err(failure)
        }
    }
}

fn is_killed(status: &Status) -> bool {
    let text = status.message();
    status.code() == Code::FailedPrecondition && text.contains("already ended") && text.contains("KILLED")
}
