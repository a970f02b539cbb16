//! Attempts on their way: builds what an executor is told, and asks it.

use crate::driver::jobs::query::Fragment;
use crate::transport::ApplicationChannels;
use firesteel_engine_core::Failure;
use firesteel_proto::v1;
use firesteel_proto::v1::tasks_client::TasksClient;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything but the fragment's bytes, which are made when they are sent.
pub struct Order {
    pub request: v1::RunTask,
    pub fragment: Arc<Fragment>,
}

/// How an attempt ended for the driver.
pub enum Outcome {
    Success(v1::TaskSuccess),
    Failure(v1::TaskFailure),
    /// Nothing is known of it.
    Unknown(String),
    /// It could not even be written down.
    Impossible(String),
}

/// Runs an attempt on the executor at `address`. Dropped, it cancels the attempt.
pub async fn run(channels: ApplicationChannels, address: String, order: Order) -> Outcome {
    let Order { mut request, fragment } = order;
    match fragment.encode() {
        Ok(plan) => request.plan = plan,
        Err(error) => return Outcome::Impossible(crate::sql::run::friendly(&error)),
    }
    request.headers = BTreeMap::clone(&fragment.headers);
    drop(fragment);
    let channel = match channels.channel(&address).await {
        Ok(channel) => channel,
        Err(error) => return Outcome::Unknown(crate::sql::run::friendly(&error)),
    };
    let mut client =
        TasksClient::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    let end = async { client.run(request).await?.into_inner().message().await };
    match end.await {
        Ok(Some(v1::TaskEnd { kind: Some(v1::task_end::Kind::Success(success)) })) => {
            Outcome::Success(success)
        }
        Ok(Some(v1::TaskEnd { kind: Some(v1::task_end::Kind::Failure(failure)) })) => {
            Outcome::Failure(failure)
        }
        Ok(_) => Outcome::Unknown("the executor said nothing".to_owned()),
        Err(status) => Outcome::Unknown(format!("{}: {}", status.code().description(), status.message())),
    }
}

/// What the failure means to the scheduler; `None` for a fetch failure, which needs a look at the output's worker first.
pub fn failure(failure: &v1::TaskFailure) -> Option<Failure> {
    use v1::task_failure::Kind;
    let message = failure.message.clone();
    Some(match failure.kind() {
        Kind::Fatal => Failure::Fatal(message),
        Kind::OutOfMemory => Failure::OutOfMemory(message),
        Kind::Cancelled => Failure::Cancelled,
        Kind::FetchFailed => return None,
        Kind::Unspecified | Kind::Retryable | Kind::NoSpace => Failure::Retryable(message),
    })
}
