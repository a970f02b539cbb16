//! `submit kill ID…`

use crate::display::one_line;
use crate::exit::{Exit, Failure};
use crate::master::Client;
use crate::output::print;
use firesteel_proto::v1::KillApplicationRequest;

/// Kills each; one that cannot be killed does not save the others.
pub async fn run(client: &mut Client, ids: &[String]) -> Result<Exit, Failure> {
    let user = crate::run::user();
    let mut first_failure: Option<Failure> = None;
    for id in ids {
        let request = KillApplicationRequest { application_id: id.clone(), user: user.clone() };
        match client.kill_application(request).await {
            Ok(answer) => print(&format!("{} killed\n", one_line(&answer.into_inner().application_id)))?,
            Err(status) => {
                let mut failure = Failure::from_status(&status, &format!("kill {id}"));
                if status.code() == tonic::Code::FailedPrecondition {
                    // It has ended: nothing to do with what the cluster can hold.
                    failure.exit = Exit::ApplicationFailed;
                }
                match &first_failure {
                    None => first_failure = Some(failure),
                    Some(_) => failure.report(),
                }
            }
        }
    }
    first_failure.map_or(Ok(Exit::Success), Err)
}
