//! See [`firesteel_worker::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    firesteel_worker::cli::main()
}
