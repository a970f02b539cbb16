//! The master's web page, its JSON and its metrics: read only, server rendered, without script.

mod application;
pub mod assets;
mod format;
mod health;
mod json;
mod layout;
mod masters;
mod metrics;
mod overview;
mod security;

pub use security::{AllowedHosts, CONTENT_SECURITY_POLICY};

use crate::consensus::{MembersView, Published};
use crate::soft::Soft;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use firesteel_common::{ApplicationId, MasterUrl};
use layout::{Page, Role};
use maud::{Markup, html};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// What the pages are made from. Cloning shares it.
#[derive(Clone)]
pub struct WebContext {
    pub published: watch::Receiver<Published>,
    pub members: watch::Receiver<Arc<MembersView>>,
    pub soft: Soft,
    pub master_url: MasterUrl,
    /// The pages' own base, without a slash at its end: `http://HOST:PORT`.
    pub ui_url: String,
    pub hosts: AllowedHosts,
    /// When this process started, in milliseconds since 1970.
    pub started_ms: u64,
}

/// The path of an application's page.
pub fn application_path(id: &ApplicationId) -> String {
    format!("/app/{id}")
}

/// All pages. Every answer carries a content security policy; a request under a foreign host name is refused.
pub fn router(context: WebContext) -> Router {
    Router::new()
        .route("/", get(overview_page))
        .route("/app/{id}", get(application_page))
        .route("/assets/{name}", get(assets::serve))
        .route("/json", get(json::master))
        .route("/json/", get(json::master))
        .route("/state", get(health::state))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(unknown_page)
        .layer(axum::middleware::from_fn_with_state(context.clone(), security::guard))
        .with_state(context)
}

/// Everything as of one moment, so that the parts of a page agree.
pub(crate) struct View {
    published: Published,
    members: Arc<MembersView>,
    soft: Soft,
    now_ms: u64,
    now: Instant,
    master_url: String,
    started_ms: u64,
}

impl View {
    fn of(context: &WebContext) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            published: context.published.borrow().clone(),
            members: context.members.borrow().clone(),
            soft: context.soft.clone(),
            now_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            now: Instant::now(),
            master_url: context.master_url.to_string(),
            started_ms: context.started_ms,
        }
    }

    fn role(&self) -> Role {
        match self.published.leader_id {
            _ if self.published.leader => Role::Leader,
            Some(leader) if leader != self.published.member_id && self.members.quorum => Role::Follower,
            _ => Role::NoLeader,
        }
    }

    fn page(&self, title: &str, live: bool, body: &Markup) -> Html<String> {
        let page = Page { title, live, master_url: &self.master_url, role: self.role() };
        Html(page.render(body).into_string())
    }

    /// Heartbeats and progress come to the leader alone.
    fn role_notice(&self) -> Markup {
        html! {
            @match self.role() {
                Role::Leader => {},
                Role::Follower => p.notice {
                    "This master follows. Heartbeats and progress are known to the leader only"
                    @if let Some(leader) = self.published.leader_id.and_then(|id| self.published.state.member(id)) {
                        ": " a href=(leader.ui_url) { (leader.client_address) }
                    }
                    "."
                },
                Role::NoLeader => p.notice.bad {
                    "The masters have no leader now. What is shown is the last known state; nothing can be submitted or \
                     changed until a majority of the masters is up."
                },
            }
        }
    }
}

async fn overview_page(State(context): State<WebContext>) -> Response {
    let view = View::of(&context);
    let live = view.published.state.active().next().is_some();
    view.page("Overview", live, &overview::render(&view)).into_response()
}

async fn application_page(
    State(context): State<WebContext>,
    Path(id): Path<String>,
    Query(shown): Query<application::Shown>,
) -> Response {
    let view = View::of(&context);
    match view.published.state.find_application(&id) {
        // An unambiguous piece of an id will do, as on the command line.
        Ok(app) if app.id.as_str() != id => Redirect::temporary(&application_path(&app.id)).into_response(),
        Ok(app) => {
            let body = application::render(&view, app, shown);
            view.page(&app.spec.name, !app.state.is_final(), &body).into_response()
        }
        Err(error) => not_found(
            &view,
            "No such application",
            &html! {
                p { (error) "." }
                p { "The cluster remembers the last " (firesteel_master_core::MAX_FINISHED_APPLICATIONS) " that ended." }
            },
        ),
    }
}

async fn unknown_page(State(context): State<WebContext>) -> Response {
    not_found(&View::of(&context), "No such page", &html! { p { "There is nothing at this address." } })
}

fn not_found(view: &View, title: &str, text: &Markup) -> Response {
    let body = html! { section.card { h1 { (title) } (text) p { a href="/" { "To the overview" } } } };
    (StatusCode::NOT_FOUND, view.page(title, false, &body)).into_response()
}
