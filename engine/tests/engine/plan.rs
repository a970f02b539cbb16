use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_distributed::{DistributedExt, NetworkBoundaryExt, SessionStateBuilderExt, WorkerResolver};
use firesteel_engine::sql::plan::{keep_work_off_the_driver, stages};
use std::sync::Arc;
use url::Url;

struct TwoExecutors;
impl WorkerResolver for TwoExecutors {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(["http://a:1", "http://b:1"].iter().filter_map(|u| Url::parse(u).ok()).collect())
    }
}

async fn planned(sql: &str) -> Arc<dyn ExecutionPlan> {
    let dir = tempfile::tempdir().unwrap();
    for file in ["a", "b", "c", "d"] {
        std::fs::write(dir.path().join(format!("{file}.csv")), "k,v\n1,2\n3,4\n").unwrap();
    }
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(SessionConfig::new().with_target_partitions(2).with_information_schema(true))
        .with_distributed_worker_resolver(TwoExecutors)
        .with_distributed_file_scan_config_bytes_per_partition(1)
        .unwrap()
        .with_distributed_planner()
        .build();
    let ctx = SessionContext::new_with_state(state);
    ctx.register_csv("t", dir.path().to_str().unwrap(), Default::default()).await.unwrap();
    let plan = ctx.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    keep_work_off_the_driver(plan, false).unwrap()
}

/// What the driver itself would execute.
fn head(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut names = vec![plan.name().to_owned()];
    if !plan.is_network_boundary() {
        names.extend(plan.children().iter().flat_map(|child| head(child)));
    }
    names
}

#[tokio::test]
async fn the_driver_only_merges_and_limits() {
    for sql in [
        "SELECT 1",
        "SELECT * FROM t",
        "SELECT * FROM t LIMIT 1",
        "SELECT k, v FROM t ORDER BY v",
        "SELECT sum(v) FROM t",
        "SELECT k, count(*) FROM t GROUP BY k HAVING count(*) > (SELECT avg(v) FROM t)",
        "SELECT a.k FROM t a JOIN t b ON a.k = b.v UNION ALL SELECT v FROM t",
        "SELECT row_number() OVER (ORDER BY k) FROM t",
        "COPY (SELECT * FROM t) TO '/tmp/never-written/' STORED AS PARQUET",
    ] {
        let plan = planned(sql).await;
        let allowed = [
            "DistributedExec",
            "CoalescePartitionsExec",
            "SortPreservingMergeExec",
            "GlobalLimitExec",
            "LocalLimitExec",
            "NetworkCoalesceExec",
        ];
        let head = head(&plan);
        assert!(head.iter().all(|name| allowed.contains(&name.as_str())), "{sql}: {head:?}");
        let stages = stages(&plan).unwrap();
        assert!(!stages.is_empty(), "{sql}");
        let numbers: Vec<usize> = stages.iter().map(|s| s.id).collect();
        assert_eq!(numbers, (1..=stages.len()).collect::<Vec<_>>(), "{sql}: numbers are unique");
    }
}

#[tokio::test]
async fn the_catalog_is_read_where_it_is() {
    let plan = planned("SELECT table_name FROM information_schema.tables ORDER BY table_name").await;
    assert!(stages(&plan).unwrap().is_empty());
}
