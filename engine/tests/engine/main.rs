//! The engine's unit tests, a module per source file. They are outside of the library, which with them would be compiled a
//! second time: for everything that DataFusion instantiates here, that takes minutes.

mod fleet;
mod output;
mod paths;
mod plan;
mod script;
mod session;
mod settings;
mod shuffle;
mod store;
mod tasks;
