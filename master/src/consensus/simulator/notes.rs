//! What happened, kept short until somebody wants to read it.

use raft::eraftpb::{Message, MessageType};
use std::collections::VecDeque;
use std::fmt;

const KEPT: usize = 50;

pub enum Note {
    Message { fate: &'static str, message: Envelope },
    Said(String),
}

/// The outside of a message.
pub struct Envelope {
    from: u64,
    to: u64,
    kind: MessageType,
    term: u64,
    index: u64,
    entries: usize,
    commit: u64,
    reject: bool,
}

impl From<&Message> for Envelope {
    fn from(message: &Message) -> Self {
        Self {
            from: message.from,
            to: message.to,
            kind: message.get_msg_type(),
            term: message.term,
            index: message.index,
            entries: message.entries.len(),
            commit: message.commit,
            reject: message.reject,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(text) => f.write_str(text),
            Self::Message { fate, message } => {
                let Envelope { from, to, kind, term, index, entries, commit, reject } = message;
                let reject = if *reject { ", rejects" } else { "" };
                write!(
                    f,
                    "{from} → {to} {fate}: {kind:?} term {term} index {index} +{entries} commit {commit}{reject}"
                )
            }
        }
    }
}

/// Sees every note as it is made.
pub type Trace = Box<dyn FnMut(&str)>;

#[derive(Default)]
pub struct Notes {
    last: VecDeque<(u64, Note)>,
    trace: Option<Trace>,
}

impl Notes {
    pub fn new(trace: Option<Trace>) -> Self {
        Self { trace, ..Self::default() }
    }

    pub fn add(&mut self, at_ms: u64, note: Note) {
        if let Some(trace) = &mut self.trace {
            trace(&line(at_ms, &note));
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back((at_ms, note));
    }

    pub fn lines(&self) -> Vec<String> {
        self.last.iter().map(|(at_ms, note)| line(*at_ms, note)).collect()
    }
}

fn line(at_ms: u64, note: &Note) -> String {
    format!("{:>9.3} s  {note}", at_ms as f64 / 1000.0)
}
