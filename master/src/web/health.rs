//! For load balancers and supervisors.

use super::WebContext;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The process is of use: it knows a leader and has applied all that it knows to be committed.
pub async fn readyz(State(context): State<WebContext>) -> Response {
    let published = context.published.borrow().clone();
    let leads = published.leader_id == Some(published.member_id);
    let reason = if published.leader_id.is_none() {
        "no leader is known\n"
    } else if published.applied < published.committed || (leads && !published.leader) {
        "the state is still being caught up with\n"
    } else {
        return "ready\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

/// Log index and hash of the replicated state: masters that have applied the same must say the same.
pub async fn state(State(context): State<WebContext>) -> String {
    let published = context.published.borrow().clone();
    format!("{} {:016x}\n", published.applied, published.state.hash())
}
