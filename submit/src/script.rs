//! The script file: read and checked before anything else happens.

use crate::cli::COMMANDS;
use crate::exit::Failure;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Far above any script written by hand or by a generator; a mistaken argument (a data file) is caught early.
const MAX_SCRIPT_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub struct Script {
    /// As the user gave it.
    pub path: PathBuf,
    /// The same for messages; not UTF-8 is shown with replacement characters.
    pub resource: String,
    pub text: String,
}

impl Script {
    /// The file name alone: the default name of the application.
    pub fn file_name(&self) -> &str {
        self.resource.rsplit('/').next().unwrap_or(&self.resource)
    }
}

/// Takes the positional arguments apart and reads the script.
pub fn load(words: &[OsString]) -> Result<Script, Failure> {
    let Some((first, rest)) = words.split_first() else {
        return Err(Failure::usage("no script given")
            .hint("submit --master URL SCRIPT.sql; submit --help shows all options"));
    };
    let path = PathBuf::from(first);
    let resource = path.to_string_lossy().into_owned();
    if let Some(argument) = rest.first() {
        let failure = Failure::usage(format!(
            "{resource} is a SQL script and takes no arguments, but {:?} follows it",
            argument.to_string_lossy()
        ));
        return Err(failure.hint("options of submit stand before the script"));
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("jar") => {
            return Err(Failure::usage(format!("{resource}: there is no JVM here, so no .jar can run"))
                .hint("submit a SQL script"));
        }
        Some("py") => {
            return Err(Failure::usage(format!("{resource}: Python applications are not supported yet"))
                .hint("submit a SQL script"));
        }
        _ => {}
    }
    let text = read(&path, &resource)?;
    Ok(Script { path, resource, text })
}

fn read(path: &Path, resource: &str) -> Result<String, Failure> {
    let cannot = |error: std::io::Error| Failure::usage(format!("cannot read {resource}: {error}"));
    // Asked before opening: opening a FIFO would wait for its writer.
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing(path, resource)),
        Err(error) => return Err(cannot(error)),
    };
    if !metadata.is_file() {
        let kind = if metadata.is_dir() { "a directory" } else { "not a regular file" };
        return Err(Failure::usage(format!("{resource} is {kind}, not a SQL script")));
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_SCRIPT_BYTES) as usize);
    File::open(path)
        .and_then(|file| file.take(MAX_SCRIPT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_SCRIPT_BYTES {
        return Err(Failure::usage(format!(
            "{resource} is larger than {} MiB: not a script",
            MAX_SCRIPT_BYTES >> 20
        ))
        .hint("data belongs into tables: CREATE EXTERNAL TABLE … LOCATION"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        Failure::usage(format!("{resource}:{line}: not UTF-8 text")).hint("convert it: iconv -t UTF-8")
    })?;
    if text.trim().is_empty() {
        return Err(Failure::usage(format!("{resource} is empty")));
    }
    Ok(text)
}

fn missing(path: &Path, resource: &str) -> Failure {
    let failure = Failure::usage(format!("{resource} does not exist"));
    if let Some(command) = nearest(resource, COMMANDS.iter().map(|c| (*c).to_owned())) {
        return failure.hint(format!("did you mean the command `submit {command}`?"));
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(directory) else {
        return failure.hint(format!("the directory {} cannot be read either", directory.display()));
    };
    // Bounded: a suggestion is not worth reading a directory of millions.
    let names = entries.take(10_000).flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match nearest(&wanted, names) {
        Some(name) => failure.hint(format!("did you mean {}?", path.with_file_name(name).display())),
        None => failure,
    }
}

/// The candidate that is a likely misspelling away from `wanted`, if there is one.
fn nearest(wanted: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let limit = (wanted.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (edit_distance(&wanted.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, d) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("report.sql", "reprot.sql", 2), ("a", "a", 0)]
        {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
            assert_eq!(edit_distance(b, a), d, "{b} {a}");
        }
    }

    #[test]
    fn only_a_likely_misspelling_is_suggested() {
        let names = || ["report.sql", "other.sql"].map(str::to_owned).into_iter();
        assert_eq!(nearest("reprot.sql", names()).as_deref(), Some("report.sql"));
        assert_eq!(nearest("xyz.sql", names()), None);
        assert!(load(&words(&["lst"])).unwrap_err().hint.contains("submit list"));
    }

    #[test]
    fn arguments_and_foreign_kinds_are_refused() {
        assert!(load(&words(&["x.sql", "--master"])).unwrap_err().message.contains("takes no arguments"));
        assert!(load(&words(&["x.jar"])).unwrap_err().message.contains("no JVM"));
        assert!(load(&words(&["x.py"])).unwrap_err().message.contains("not supported yet"));
        assert!(load(&[]).unwrap_err().message.contains("no script"));
    }
}
