//! TPC-H and TPC-DS: data made by the engine, query texts read from the sources of `datafusion-distributed`.

use crate::cluster::binary;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A benchmark's tables and queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    pub name: &'static str,
    queries: u32,
}

pub const TPCH: Suite = Suite { name: "tpch", queries: 22 };
pub const TPCDS: Suite = Suite { name: "tpcds", queries: 99 };

impl Suite {
    pub fn numbers(self) -> RangeInclusive<u32> {
        1..=self.queries
    }

    /// The text of each query, in order, without closing semicolons.
    pub fn queries(self) -> Vec<String> {
        let dir = sources_of_datafusion_distributed().join("testdata").join(self.name).join("queries");
        let read = |number| {
            let path = dir.join(format!("q{number}.sql"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            text.trim().trim_end_matches(';').to_owned()
        };
        self.numbers().map(read).collect()
    }

    /// `CREATE EXTERNAL TABLE` for every table under `data`.
    pub fn tables(self, data: &Path) -> String {
        let entries = std::fs::read_dir(data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.expect("entry").file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        let table = |name: &String| {
            format!("CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION '{}/{name}/';\n", data.display())
        };
        names.iter().map(table).collect()
    }

    /// Makes the data of a scale once per target directory and returns its place.
    pub fn data(self, scale: f64) -> PathBuf {
        let engine = binary("firesteel-engine");
        let base =
            engine.parent().and_then(Path::parent).expect("binaries lie in target/release").join("test-data");
        let dir = base.join(format!("{}-{scale}", self.name));
        std::fs::create_dir_all(&base).expect("the target directory is writable");
        // Tests run side by side: the first one makes the data, the others wait for it.
        let lock = std::fs::File::create(base.join("lock")).expect("lock file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("flock");
        let status = Command::new(engine)
            .args(["sample-data", "--benchmark", self.name, "--parts", "2", "--scale", &scale.to_string()])
            .arg(&dir)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("firesteel-engine runs");
        assert!(status.success(), "sample-data failed");
        dir
    }
}

/// The queries' texts with other parameters, so that every one of them has rows at the tests' scale, where the values
/// of the texts do not occur: nothing is proven by two empty results.
pub fn with_small_parameters(suite: Suite, number: u32, text: &str) -> String {
    let mut text = text.to_owned();
    let own = SMALL_PARAMETERS.iter().filter(|(name, query, ..)| (*name, *query) == (suite.name, number));
    for (name, query, from, to) in own {
        assert!(text.contains(from), "{name} q{query} holds {from:?} no longer");
        text = text.replace(from, to);
    }
    text
}

const SMALL_PARAMETERS: [(&str, u32, &str, &str); 29] = [
    ("tpcds", 8, "count(*) > 10", "count(*) > 0"),
    ("tpcds", 8, "'24128'", "'31669'"),
    ("tpcds", 10, "ca_county IN", "ca_county NOT IN"),
    ("tpcds", 23, "count(*) >4", "count(*) > 0"),
    ("tpcds", 24, "s_zip = ca_zip", "s_gmt_offset = ca_gmt_offset"),
    ("tpcds", 24, "'peach'", "'sky'"),
    ("tpcds", 31, "ca_county", "ca_state"),
    ("tpcds", 37, "i_manufact_id IN", "i_manufact_id NOT IN"),
    ("tpcds", 41, "738 AND 738+40", "1 AND 1000"),
    ("tpcds", 44, "ss_store_sk = 4", "ss_store_sk = 1"),
    ("tpcds", 54, "i_class = 'maternity'", "i_class <> 'maternity'"),
    ("tpcds", 54, "ca_county = s_county", "ca_county <> s_county"),
    ("tpcds", 54, "ca_state = s_state", "ca_state <> s_state"),
    ("tpcds", 58, "0.9 *", "0.1 *"),
    ("tpcds", 58, "1.1 *", "10 *"),
    ("tpcds", 64, "'purple'", "'sky'"),
    ("tpcds", 64, "64 AND 64 + 10", "0 AND 100"),
    ("tpcds", 64, "64 + 1 AND 64 + 15", "0 AND 100"),
    ("tpcds", 82, "i_manufact_id IN", "i_manufact_id NOT IN"),
    ("tpcds", 83, "d_week_seq IN", "d_week_seq NOT IN"),
    ("tpcds", 84, "= 'Edgewood'", "<> 'Edgewood'"),
    ("tpcds", 84, ">= 38128", ">= 0"),
    ("tpcds", 84, "38128 + 50000", "200000"),
    ("tpcds", 85, "d_year = 2000", "d_year > 1900"),
    ("tpcds", 85, "ca_state IN", "ca_state NOT IN"),
    ("tpcds", 85, "100 AND 200", "-10000 AND 10000"),
    ("tpcds", 85, "50.00 AND 100.00", "0 AND 300"),
    ("tpcds", 91, "LIKE 'Unknown%'", "LIKE '%'"),
    ("tpcds", 91, "-7", "-5"),
];

/// Where cargo keeps the crate, as `cargo metadata` tells.
fn sources_of_datafusion_distributed() -> PathBuf {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|p| p["name"] == "datafusion-distributed"))
        .and_then(|package| package["manifest_path"].as_str())
        .expect("datafusion-distributed is a dependency");
    Path::new(manifest).parent().expect("a directory").to_path_buf()
}

/// The query of `text` with `limit` rows at most, without those of its own limit: for its header, nothing need run.
pub fn limited(text: &str, limit: u64) -> String {
    let (before, query, after) = query_of(text);
    let end = clauses(query).limit.unwrap_or(query.len());
    format!("{before}{}\nLIMIT {limit}{after}", &query[..end])
}

/// The query of `text` with all of its `columns` at the end of its ORDER BY. Rows that only the engine's mood could put
/// in another order, or on the other side of a LIMIT, are then the same rows: results can be compared row by row.
/// `None` for a query without ORDER BY.
pub fn in_total_order(text: &str, columns: usize) -> Option<String> {
    let (before, query, after) = query_of(text);
    let Clauses { order, limit } = clauses(query);
    order?;
    let end = limit.unwrap_or(query.len());
    let all: String = (1..=columns).map(|column| format!(", {column}")).collect();
    Some(format!("{before}{}\n{all}\n{}{after}", &query[..end], &query[end..]))
}

/// The statement of a text that has a result (the others make and drop a view), what stands before it and after it.
fn query_of(text: &str) -> (&str, &str, &str) {
    let mut begin = 0;
    let ends = words(text).into_iter().filter(|w| w.text == ";").map(|w| w.at).chain([text.len()]);
    for end in ends {
        let first = words(&text[begin..end]).into_iter().next();
        if first.is_some_and(|w| ["SELECT", "WITH", "("].iter().any(|s| w.text.eq_ignore_ascii_case(s))) {
            return (&text[..begin], &text[begin..end], &text[end..]);
        }
        begin = end + 1;
    }
    panic!("no query in {text}")
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Clauses {
    /// Where the query's own ORDER BY begins.
    order: Option<usize>,
    limit: Option<usize>,
}

fn clauses(query: &str) -> Clauses {
    let mut found = Clauses::default();
    for word in words(query).iter().filter(|w| w.depth == 0) {
        if word.text.eq_ignore_ascii_case("ORDER") {
            found.order = Some(word.at);
        } else if word.text.eq_ignore_ascii_case("LIMIT") {
            found.limit = Some(word.at);
        }
    }
    found
}

/// A word or a sign of SQL outside of quotes and comments.
struct Word<'a> {
    at: usize,
    text: &'a str,
    /// How many parentheses it stands in.
    depth: usize,
}

fn words(sql: &str) -> Vec<Word<'_>> {
    let (mut words, mut depth, mut at) = (Vec::new(), 0_usize, 0);
    while let Some(first) = sql[at..].chars().next() {
        let rest = &sql[at..];
        let until = |end: &str| rest[1..].find(end).map_or(rest.len(), |i| i + 1 + end.len());
        let length = match first {
            '\'' => until("'"),
            '"' => until("\""),
            '-' if rest.starts_with("--") => until("\n"),
            '/' if rest.starts_with("/*") => until("*/"),
            c if c.is_alphanumeric() || c == '_' => {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        if first == ')' {
            depth = depth.saturating_sub(1);
        }
        let skipped = first.is_whitespace()
            || matches!(first, '\'' | '"')
            || rest.starts_with("--")
            || rest.starts_with("/*");
        if !skipped {
            words.push(Word { at, text: &rest[..length], depth });
        }
        if first == '(' {
            depth += 1;
        }
        at += length;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clauses_of_the_query_itself_are_changed() {
        let text = "WITH w AS (SELECT a FROM t ORDER BY a LIMIT 3)\n\
                    SELECT a, 'ORDER BY x LIMIT (' AS \"LIMIT\", rank() OVER (ORDER BY a) -- LIMIT 9\n\
                    FROM w ORDER BY a DESC LIMIT 100";
        let whole = text.trim_end_matches("LIMIT 100");
        assert_eq!(limited(text, 0), format!("{whole}\nLIMIT 0"));
        assert_eq!(in_total_order(text, 3).unwrap(), format!("{whole}\n, 1, 2, 3\nLIMIT 100"));
        assert_eq!(in_total_order("SELECT max(a) FROM (SELECT a FROM t ORDER BY a)", 1), None);
    }

    #[test]
    fn views_around_a_query_stay() {
        let text = "create view v (a) as select 1 limit 5;\nselect a from v order by a;\ndrop view v";
        assert_eq!(
            limited(text, 0),
            "create view v (a) as select 1 limit 5;\nselect a from v order by a\nLIMIT 0;\ndrop view v"
        );
        assert_eq!(
            in_total_order(text, 1).unwrap(),
            "create view v (a) as select 1 limit 5;\nselect a from v order by a\n, 1\n;\ndrop view v"
        );
    }
}
