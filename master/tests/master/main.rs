//! The master from outside: its program, and its services and pages in this process.

mod daemon;
mod harness;
mod services;
mod web;
