//! Relative paths in a script mean the directory in which the user ran `submit`, wherever the driver runs.

use datafusion::sql::parser::{CopyToStatement, CreateExternalTable, ExplainStatement, Statement};
use std::path::Path;

/// A relative path that nothing says the start of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the path {0:?} is relative, and the submitter's directory is not known\nhint: use an absolute path or a URL"
)]
pub struct NoWorkingDirectory(String);

/// Makes the paths of `CREATE EXTERNAL TABLE` and `COPY … TO` absolute.
pub fn make_absolute(
    statement: &mut Statement,
    working_directory: Option<&Path>,
) -> Result<(), NoWorkingDirectory> {
    match statement {
        Statement::CreateExternalTable(CreateExternalTable { locations, .. }) => {
            locations.iter_mut().try_for_each(|location| absolute(location, working_directory))
        }
        Statement::CopyTo(CopyToStatement { target, .. }) => absolute(target, working_directory),
        Statement::Explain(ExplainStatement { statement, .. }) => make_absolute(statement, working_directory),
        Statement::Statement(_) | Statement::Reset(_) => Ok(()),
    }
}

fn absolute(path: &mut String, working_directory: Option<&Path>) -> Result<(), NoWorkingDirectory> {
    if path.contains("://") || Path::new(path.as_str()).is_absolute() {
        return Ok(());
    }
    let base = working_directory.ok_or_else(|| NoWorkingDirectory(path.clone()))?;
    let trailing = path.ends_with('/');
    let mut joined = base.join(&*path).components().collect::<std::path::PathBuf>().display().to_string();
    if trailing && !joined.ends_with('/') {
        joined.push('/');
    }
    *path = joined;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::script;

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
}
