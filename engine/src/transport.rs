//! Channels between the processes of one application: every call carries the application's token.

use datafusion::common::exec_datafusion_err;
use datafusion::error::{DataFusionError, Result};
use datafusion_distributed::grpc::{BoxCloneSyncChannel, create_worker_client};
use datafusion_distributed::{ChannelResolver, WorkerChannel};
use firesteel_common::Secret;
use http::{HeaderValue, header::AUTHORIZATION};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::{Request, Status};
use tower::util::MapRequest;
use url::Url;

/// Connects to executors, once each, and presents the application's token on every request.
#[derive(Debug, Clone)]
pub struct ApplicationChannels {
    authorization: HeaderValue,
    channels: Arc<Mutex<HashMap<String, tonic::transport::Channel>>>,
}

/// The token cannot be sent as a header.
#[derive(Debug, thiserror::Error)]
#[error("the application's token is not a valid header value")]
pub struct InvalidToken;

impl ApplicationChannels {
    pub fn new(token: &Secret) -> Result<Self, InvalidToken> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| InvalidToken)?;
        authorization.set_sensitive(true);
        Ok(Self { authorization, channels: Arc::default() })
    }

    /// The channel to `HOST:PORT`; a failed connection is not remembered.
    pub async fn channel(&self, address: &str) -> Result<BoxCloneSyncChannel> {
        let known = self.channels.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
        let channel = match known {
            Some(channel) => channel,
            None => {
                let channel = firesteel_proto::channel::connect(address)
                    .await
                    .map_err(|e| DataFusionError::External(Box::new(e)))?;
                self.channels
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(address.to_owned(), channel.clone());
                channel
            }
        };
        let authorization = self.authorization.clone();
        Ok(BoxCloneSyncChannel::new(MapRequest::new(
            channel,
            move |mut request: http::Request<tonic::body::Body>| {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
                request
            },
        )))
    }

    /// Forgets a connection, so that the next use dials again.
    pub fn forget(&self, address: &str) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
    }
}

/// `HOST:PORT` of an executor's URL.
pub fn address_of(url: &Url) -> Result<String> {
    match (url.host_str(), url.port_or_known_default()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err(exec_datafusion_err!("{url} is not the URL of an executor")),
    }
}

#[async_trait::async_trait]
impl ChannelResolver for ApplicationChannels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        Ok(create_worker_client(self.channel(&address_of(url)?).await?))
    }
}

/// Lets in only callers that know the application's token.
#[derive(Clone)]
pub struct RequireToken {
    token: Secret,
}

impl RequireToken {
    pub fn new(token: Secret) -> Self {
        Self { token }
    }
}

impl tonic::service::Interceptor for RequireToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let presented = request
            .metadata()
            .get(AUTHORIZATION.as_str())
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match presented {
            Some(guess) if self.token.matches(guess) => Ok(request),
            _ => Err(Status::unauthenticated("this executor belongs to an application whose token you lack")),
        }
    }
}
