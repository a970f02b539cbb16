//! Everything besides submitting.

mod json;
mod kill;
mod list;
mod logs;
mod status;

use crate::cli::Command;
use crate::exit::{Exit, Failure};
use crate::master::{self, Client};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use firesteel_common::MasterUrl;
use firesteel_proto::v1::{ApplicationStatus, WatchApplicationRequest};

/// Runs one command.
pub async fn run(command: Command, url: MasterUrl, quiet: bool) -> Result<Exit, Failure> {
    let mut client = master::connect(&url).await?;
    match command {
        Command::List { output } => list::run(&mut client, output).await,
        Command::Status { id, output } => status::run(&mut client, &id, output).await,
        Command::Logs { id, follow, tail, executor, stderr, stdout } => {
            // Both, unless one was asked for.
            let streams = logs::Streams { stdout: !stderr, stderr: !stdout };
            logs::run(&url, &mut client, &id, logs::Wanted { follow, tail, executor, streams, quiet }).await
        }
        Command::Kill { ids } => kill::run(&mut client, &ids).await,
    }
}

/// The current status of the application that `id` (or a part of it) names.
async fn current(client: &mut Client, id: &str) -> Result<ApplicationStatus, Failure> {
    let doing = format!("show {id}");
    let failure = |status: tonic::Status| Failure::from_status(&status, &doing);
    let request = WatchApplicationRequest { application_id: id.to_owned() };
    let mut stream = client.watch_application(request).await.map_err(failure)?.into_inner();
    match stream.message().await.map_err(failure)? {
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
