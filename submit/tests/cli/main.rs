//! The real program against a fake master (the real protocol) and a fake engine (a shell script).

mod client_mode;
mod cluster_mode;
mod commands;
mod failover;
mod fake;
mod masters;
mod program;
mod usage;
