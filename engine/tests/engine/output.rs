use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use firesteel_common::OutputFormat;
use firesteel_engine::output::ResultWriter;
use std::sync::Arc;

fn batch(numbers: Vec<Option<i64>>, texts: Vec<&str>) -> RecordBatch {
    let schema =
        Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("text", DataType::Utf8, false)]);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![Arc::new(Int64Array::from(numbers)), Arc::new(StringArray::from(texts))],
    )
    .unwrap()
}

fn written(format: OutputFormat, batches: &[RecordBatch]) -> String {
    let mut out = Vec::new();
    let mut writer = ResultWriter::new(&mut out, format);
    let mut result = writer.begin(batch(vec![], vec![]).schema()).unwrap();
    for b in batches {
        writer.write(&mut result, b).unwrap();
    }
    writer.end(result).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn tables_align_and_count() {
    let text = written(OutputFormat::Table, &[batch(vec![Some(1), None], vec!["a", "żółć\u{1b}[31m"])]);
    assert_eq!(
        text,
        "+------+-----------+\n| n    | text      |\n+------+-----------+\n|    1 | a         |\n| NULL | żółć\u{fffd}[31m |\n+------+-----------+\n(2 rows)\n"
    );
}

#[test]
fn csv_and_json_are_the_data_alone() {
    let batches = [batch(vec![Some(1)], vec!["a,\"b\""]), batch(vec![None], vec!["c"])];
    assert_eq!(written(OutputFormat::Csv, &batches), "n,text\n1,\"a,\"\"b\"\"\"\n,c\n");
    assert_eq!(
        written(OutputFormat::Json, &batches),
        "{\"n\":1,\"text\":\"a,\\\"b\\\"\"}\n{\"n\":null,\"text\":\"c\"}\n"
    );
}

#[test]
fn an_empty_result_still_has_its_header() {
    assert_eq!(written(OutputFormat::Csv, &[]), "n,text\n");
    assert!(written(OutputFormat::Table, &[]).ends_with("(0 rows)\n"));
    assert_eq!(written(OutputFormat::Json, &[]), "");
}
