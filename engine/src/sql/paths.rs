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
