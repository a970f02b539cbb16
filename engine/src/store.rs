//! Object stores by URL: `s3://`, `gs://`, `az://`, `http://` stores are made the first time they are met.

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use url::Url;

/// A registry that builds stores from the application's `firesteel.store.*` options.
#[derive(Debug)]
pub struct Stores {
    options: Vec<(String, String)>,
    local: Arc<LocalFileSystem>,
    made: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl Stores {
    pub fn new(options: Vec<(String, String)>) -> Self {
        Self { options, local: Arc::new(LocalFileSystem::new()), made: Mutex::default() }
    }
}

/// Scheme and authority: one store per bucket or host.
fn key(url: &Url) -> String {
    format!("{}://{}", url.scheme(), &url[url::Position::BeforeHost..url::Position::AfterPort])
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(key(url), store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let key = key(url);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = made.get(&key) {
            return Ok(Arc::clone(store));
        }
        if url.scheme() == "file" {
            return Ok(Arc::clone(&self.local) as _);
        }
        let root = Url::parse(&key).map_err(|e| DataFusionError::External(Box::new(e)))?;
        let allow_http = ("allow_http".to_owned(), "true".to_owned());
        // An http:// URL says itself that it is not encrypted; the other stores ask for it by option.
        let implied = (url.scheme() == "http").then_some(allow_http);
        let options = self.options.iter().cloned().chain(implied);
        let (store, _) = object_store::parse_url_opts(&root, options).map_err(|e| {
            DataFusionError::Configuration(format!(
                "cannot reach {key}: {e}\nhint: give the store's options as --conf firesteel.store.NAME=VALUE, \
                 such as aws_region, aws_endpoint, google_service_account, azure_storage_account_name"
            ))
        })?;
        let store: Arc<dyn ObjectStore> = Arc::from(store);
        made.insert(key, Arc::clone(&store));
        Ok(store)
    }
}
