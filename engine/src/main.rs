//! `firesteel-engine`: driver and executor in one binary, so that DataFusion is linked once.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    firesteel_engine::cli::main()
}
