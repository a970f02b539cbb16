//! The `raft` crate logs through slog: its records go to tracing.

use std::fmt::{self, Write};

struct ToTracing;

/// Collects a record's key-value pairs as ` key=value`.
struct Pairs(String);

impl slog::Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}

impl slog::Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        // What is information to the algorithm is detail to an operator: one level down.
        macro_rules! forward {
            ($level:ident) => {
                if tracing::enabled!(target: "raft", tracing::Level::$level) {
                    let mut pairs = Pairs(String::new());
                    let _ = slog::KV::serialize(&record.kv(), record, &mut pairs);
                    tracing::event!(target: "raft", tracing::Level::$level, "{}{}", record.msg(), pairs.0)
                }
            };
        }
        match record.level() {
            slog::Level::Critical => forward!(ERROR),
            slog::Level::Error => forward!(WARN),
            slog::Level::Warning => forward!(INFO),
            slog::Level::Info => forward!(DEBUG),
            slog::Level::Debug | slog::Level::Trace => forward!(TRACE),
        }
        Ok(())
    }
}

pub fn logger() -> slog::Logger {
    slog::Logger::root(ToTracing, slog::o!())
}
