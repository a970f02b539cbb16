//! The real program against a fake master (the real protocol) and a fake engine (a shell script).

mod client_mode;
mod cluster_mode;
mod commands;
mod fake;
mod program;
mod usage;
