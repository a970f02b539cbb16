//! See [`firesteel_master::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    firesteel_master::cli::main()
}
