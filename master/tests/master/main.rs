//! The master from outside: its program, and its services in this process.

mod daemon;
mod harness;
mod services;
