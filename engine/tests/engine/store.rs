use datafusion::execution::object_store::ObjectStoreRegistry;
use firesteel_engine::store::Stores;
use std::sync::Arc;
use url::Url;

#[test]
fn stores_are_made_once_per_bucket() {
    let stores =
        Stores::new(vec![("aws_region".into(), "eu-1".into()), ("aws_skip_signature".into(), "true".into())]);
    let get = |url: &str| stores.get_store(&Url::parse(url).unwrap());
    let a = get("s3://bucket/x").unwrap();
    assert!(Arc::ptr_eq(&a, &get("s3://bucket/y").unwrap()));
    assert!(!Arc::ptr_eq(&a, &get("s3://other/y").unwrap()));
    assert!(get("http://127.0.0.1:1/x").is_ok());
    assert!(get("gopher://h/x").unwrap_err().to_string().contains("gopher://h"));
}
