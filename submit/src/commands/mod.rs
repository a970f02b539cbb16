//! Everything besides submitting.

mod json;
mod kill;
mod list;
mod logs;
mod masters;
mod status;

use crate::cli::Command;
use crate::exit::{Exit, Failure};
use crate::master::{Cluster, client};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use firesteel_common::MasterUrl;
use firesteel_proto::v1::{ApplicationStatus, WatchApplicationRequest};

/// Runs one command.
pub async fn run(command: Command, url: MasterUrl, quiet: bool) -> Result<Exit, Failure> {
    let cluster = Cluster::new(&url, quiet);
    match command {
        Command::List { output } => list::run(&cluster, output).await,
        Command::Status { id, output } => status::run(&cluster, &id, output).await,
        Command::Logs { id, follow, tail, executor, stderr, stdout } => {
            // Both, unless one was asked for.
            let streams = logs::Streams { stdout: !stderr, stderr: !stdout };
            logs::run(&cluster, &id, logs::Wanted { follow, tail, executor, streams, quiet }).await
        }
        Command::Kill { ids } => kill::run(&cluster, &ids).await,
        Command::Masters { output, action: None } => {
            masters::list(&cluster, output.unwrap_or_default()).await
        }
        Command::Masters { action: Some(action), .. } => masters::change(&cluster, action).await,
    }
}

/// The current status of the application that `id` (or a part of it) names.
async fn current(cluster: &Cluster, id: &str) -> Result<ApplicationStatus, Failure> {
    let doing = format!("show {id}");
    let look = async |leader| {
        let request = WatchApplicationRequest { application_id: id.to_owned() };
        client(&leader).watch_application(request).await?.into_inner().message().await
    };
    match cluster.request(look).await.map_err(|error| error.failure(&doing))? {
        Some(status) => Ok(status),
        None => Err(Failure::new(Exit::Unreachable, format!("cannot {doing}: the master said nothing"))),
    }
}

/// Columns without frames: easy to read, easy to cut. Columns named in `numbers` are aligned to the right.
fn table(header: &[&str], numbers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    // Lines are not wrapped: one row stays one line, also in `| grep`.
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (name, column) in header.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 2));
        if numbers.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_one_line_per_row_without_trailing_blanks() {
        let rows = vec![
            vec!["a".into(), "10".into(), String::new()],
            vec!["long".into(), "9".into(), "x ".repeat(200)],
        ];
        let text = table(&["NAME", "N", "WHY"], &["N"], rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "NAME   N  WHY");
        assert_eq!(lines[1], "a     10");
        assert!(lines[2].starts_with("long   9  x x"));
    }
}
