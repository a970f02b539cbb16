//! What every request must satisfy and every answer carries.

use super::WebContext;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// Nothing but our own style sheet and images: an injected script, form or frame would be dead.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// The names by which this page may be called. A page of another site can make its own name point here (DNS
/// rebinding) and would then read ours as its own; it cannot make its requests carry our name.
#[derive(Debug, Clone)]
pub struct AllowedHosts {
    names: Vec<String>,
    /// Bound to all addresses: any of them may be used. An address in a URL cannot be rebound.
    any_address: bool,
}

impl AllowedHosts {
    /// `bind` is the host that the server listens on, `others` are further names of it.
    pub fn new(bind: &str, others: impl IntoIterator<Item = String>) -> Self {
        let any_address = bind.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        let names =
            others.into_iter().chain([bind.to_owned()]).map(|name| name.to_ascii_lowercase()).collect();
        Self { names, any_address }
    }

    /// `host` as in a Host header, without the port.
    fn allows(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() => true,
            Ok(_) if self.any_address => true,
            _ => host == "localhost" || self.names.contains(&host),
        }
    }
}

/// The host that a request is meant for; `None` if it does not say or says it twice.
fn requested_host(request: &Request) -> Option<String> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.host().to_owned());
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    let authority: Authority = host.to_str().ok()?.parse().ok()?;
    // A user name in it is nothing a browser sends.
    (!authority.as_str().contains('@')).then(|| authority.host().to_owned())
}

pub async fn guard(State(context): State<WebContext>, request: Request, next: Next) -> Response {
    let mut response = match refuse(&context, &request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    // What is shown changes and may be private; assets say otherwise themselves.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn refuse(context: &WebContext, request: &Request) -> Option<Response> {
    match requested_host(request) {
        None => Some((StatusCode::BAD_REQUEST, "one Host header is needed\n").into_response()),
        Some(host) if !context.hosts.allows(&host) => {
            let text = format!("this page does not answer to that host name: use {}\n", context.ui_url);
            Some((StatusCode::MISDIRECTED_REQUEST, text).into_response())
        }
        Some(_) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            let allow = [(header::ALLOW, "GET, HEAD")];
            Some(
                (StatusCode::METHOD_NOT_ALLOWED, allow, "these pages are only for reading\n").into_response(),
            )
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_allowed() {
        let loopback = AllowedHosts::new("127.0.0.1", []);
        for good in ["127.0.0.1", "localhost", "LOCALHOST", "localhost.", "[::1]", "127.0.0.2"] {
            assert!(loopback.allows(good), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "10.0.0.1", "", "0.0.0.0", "127.0.0.1.nip.io"] {
            assert!(!loopback.allows(bad), "{bad}");
        }
        let named = AllowedHosts::new("Master.Example", ["10.0.0.1".to_owned()]);
        assert!(named.allows("master.example") && named.allows("10.0.0.1") && named.allows("localhost"));
        assert!(!named.allows("10.0.0.2") && !named.allows("other.example"));
        let open = AllowedHosts::new("0.0.0.0", ["box".to_owned()]);
        assert!(open.allows("10.0.0.1") && open.allows("[fe80::1]") && open.allows("box"));
        assert!(!open.allows("evil.example"));
    }
}
