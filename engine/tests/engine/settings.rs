use firesteel_engine::settings::{Compression, InvalidSetting, Settings};

fn parse(pairs: &[(&str, &str)]) -> Result<Settings, InvalidSetting> {
    Settings::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

#[test]
fn settings_are_typed() {
    let s = parse(&[
        ("firesteel.result.bufferSize", "1m"),
        ("firesteel.scan.bytesPerPartition", "64k"),
        ("firesteel.shuffle.compression", "zstd"),
        ("firesteel.store.AWS_REGION", "eu-1"),
        ("datafusion.execution.batch_size", "4096"),
        ("spark.anything", "x"),
    ])
    .unwrap();
    assert_eq!(s.result_buffer_bytes, 1 << 20);
    assert_eq!(s.compression, Compression::Zstd);
    assert_eq!(s.scan_bytes_per_partition, Some(65_536));
    assert_eq!(s.store_options, [("aws_region".to_owned(), "eu-1".to_owned())]);
}

#[test]
fn a_misspelt_key_is_answered_with_the_nearest() {
    let error = parse(&[("firesteel.result.buffersize", "1m")]).unwrap_err().to_string();
    assert!(error.contains("did you mean firesteel.result.bufferSize"), "{error}");
    let error = parse(&[("nonsense", "1")]).unwrap_err().to_string();
    assert!(error.contains("known are firesteel.execution.mode"), "{error}");
}

#[test]
fn values_that_cannot_work_are_refused() {
    for (key, value) in [
        ("firesteel.execution.mode", "magic"),
        ("firesteel.executor.memoryFraction", "2"),
        ("firesteel.result.bufferSize", "lots"),
        ("firesteel.scan.bytesPerPartition", "0"),
        ("firesteel.scan.bytesPerPartition", "99999999999999999999g"),
        ("firesteel.submit.workingDirectory", "relative"),
        ("datafusion.no.such", "1"),
        ("datafusion.execution.batch_size", "many"),
        ("datafusion.execution.target_partitions", "1"),
    ] {
        assert!(parse(&[(key, value)]).is_err(), "{key}={value}");
    }
}
