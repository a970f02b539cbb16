use firesteel_engine::sql::paths::{NoWorkingDirectory, make_absolute};
use firesteel_engine::sql::script;
use std::path::Path;

fn rewritten(sql: &str, base: Option<&str>) -> Result<String, NoWorkingDirectory> {
    let mut parsed = script::parse("s", sql).unwrap().remove(0).parsed;
    make_absolute(&mut parsed, base.map(Path::new))?;
    Ok(parsed.to_string())
}

#[test]
fn only_relative_paths_change() {
    let table = |path: &str| format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'");
    assert!(rewritten(&table("data/"), Some("/home/ana")).unwrap().contains("/home/ana/data/"));
    assert!(rewritten(&table("./x.csv"), Some("/home/ana")).unwrap().contains("/home/ana/x.csv"));
    assert!(rewritten(&table("s3://b/x"), None).unwrap().contains("s3://b/x"));
    assert!(rewritten(&table("/abs"), None).unwrap().contains("/abs"));
    assert!(rewritten(&table("rel"), None).is_err());
    assert!(rewritten("EXPLAIN COPY (SELECT 1) TO 'o.csv'", Some("/w")).unwrap().contains("/w/o.csv"));
}
