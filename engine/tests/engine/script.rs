use firesteel_engine::sql::script::{parse, summary};

#[test]
fn statements_are_cut_at_semicolons_outside_of_text() {
    let script =
        "-- first; not a statement\nSELECT ';' AS a;\n\n;CREATE VIEW v AS\n  SELECT 1 /* ; */;\nSELECT 2";
    let statements = parse("s.sql", script).unwrap();
    let texts: Vec<_> = statements.iter().map(|s| (s.line, s.text.as_str())).collect();
    assert_eq!(texts, [(2, "SELECT ';' AS a"), (4, "CREATE VIEW v AS\n  SELECT 1"), (6, "SELECT 2")]);
}

#[test]
fn external_tables_and_copies_parse() {
    let script = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/d';
        COPY (SELECT 1) TO '/o' STORED AS CSV; SET datafusion.execution.batch_size = 10; EXPLAIN SELECT 1;
        INSERT INTO t SELECT 1";
    assert_eq!(parse("s.sql", script).unwrap().len(), 5);
}

#[test]
fn a_syntax_error_names_file_line_and_column() {
    let error = parse("s.sql", "SELECT 1;\nSELECT a\n  FROM t GROUP a;\n").unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("s.sql", 3), "{error}");
    let error = parse("s.sql", "SELECT 1;\nSELEC 2;\n").unwrap_err();
    assert_eq!((error.line, error.column), (2, 1), "{error}");
    assert!(error.excerpt.ends_with("| SELEC 2;\n  | ^"), "{error}");
    assert!(error.to_string().starts_with("s.sql:2:1: "), "{error}");
}

#[test]
fn an_unfinished_statement_points_at_its_end() {
    let error = parse("s.sql", "SELECT 1 +").unwrap_err();
    assert_eq!(error.line, 1);
    let error = parse("s.sql", "SELECT 'open\n").unwrap_err();
    assert_eq!((error.line, error.column), (1, 8), "{error}");
}

#[test]
fn nesting_without_end_is_an_error_not_a_crash() {
    let deep = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(parse("s.sql", &deep).is_err());
}

#[test]
fn multibyte_text_does_not_shift_the_cut() {
    let statements = parse("s.sql", "SELECT 'žluťoučký'; SELECT 'kůň' AS x").unwrap();
    assert_eq!(statements[1].text, "SELECT 'kůň' AS x");
}

#[test]
fn summaries_fold_white_space() {
    assert_eq!(summary("SELECT  a -- why\n  FROM t", 80), "SELECT a FROM t");
    assert_eq!(summary("SELECT aaaaaaaaaa", 10), "SELECT aa…");
}
