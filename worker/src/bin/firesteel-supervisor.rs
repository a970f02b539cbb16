//! See [`firesteel_worker::supervisor`].

use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 || std::io::stdin().is_terminal() {
        eprintln!(
            "firesteel-supervisor is started by firesteel-worker, one per driver and executor.\n\
             It takes its orders from standard input and no arguments."
        );
        return ExitCode::from(2);
    }
    firesteel_worker::supervisor::run()
}
