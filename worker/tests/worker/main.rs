//! The real programs. One binary, so that what all of them need is compiled and linked once; `launcher` is another, because
//! the launcher in its process ends every child that it did not start itself.

mod daemon;
mod failover;
mod shuffle;
mod shuffle_life;
mod supervisor;
#[path = "../support/mod.rs"]
mod support;
