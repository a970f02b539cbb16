//! Standard output and standard error, shared between results and the progress line.

use crate::display;
use crate::exit::Failure;
use crate::progress::{self, Tracker};
use firesteel_proto::v1::ApplicationStatus;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::time::Instant;
use tokio::io::AsyncWriteExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Copies bytes unchanged to one of the two standard streams.
#[derive(Debug)]
pub struct Output {
    stream: Stream,
    /// Set when the progress line shares the screen with this stream.
    bar: Option<ProgressBar>,
    /// An unfinished line that waits for its end, so that the progress line is not drawn into it.
    held: Vec<u8>,
}

/// Longer "lines" are let through in pieces.
const HELD_BYTES_MAX: usize = 64 << 10;

impl Output {
    pub fn new(stream: Stream, bar: Option<ProgressBar>) -> Self {
        let shared = match stream {
            Stream::Stdout => io::stdout().is_terminal(),
            Stream::Stderr => true,
        };
        Self { stream, bar: bar.filter(|_| shared), held: Vec::new() }
    }

    /// Writes and flushes: a follower sees every byte as soon as it has arrived.
    pub async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let Some(bar) = &self.bar else {
            return self.write_through(data).await;
        };
        self.held.extend_from_slice(data);
        let end = match self.held.iter().rposition(|&b| b == b'\n') {
            Some(newline) => newline + 1,
            None if self.held.len() > HELD_BYTES_MAX => self.held.len(),
            None => return Ok(()),
        };
        let rest = self.held.split_off(end);
        let complete = std::mem::replace(&mut self.held, rest);
        bar.suspend(|| write_now(self.stream, &complete))
    }

    /// Writes what was held back.
    pub async fn finish(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        match &self.bar {
            Some(bar) if !held.is_empty() => bar.suspend(|| write_now(self.stream, &held)),
            _ => Ok(()),
        }
    }

    /// Off the runtime's only thread: while a slow reader blocks the pipe, Ctrl-C and the master are still heard.
    async fn write_through(&self, data: &[u8]) -> io::Result<()> {
        match self.stream {
            Stream::Stdout => {
                let mut stdout = tokio::io::stdout();
                stdout.write_all(data).await?;
                stdout.flush().await
            }
            Stream::Stderr => {
                let mut stderr = tokio::io::stderr();
                stderr.write_all(data).await?;
                stderr.flush().await
            }
        }
    }
}

fn write_now(stream: Stream, data: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(data)?;
            stdout.flush()
        }
        Stream::Stderr => io::stderr().write_all(data),
    }
}

/// Prints a finished text (a table, an id) to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    Ok(write_now(Stream::Stdout, text.as_bytes())?)
}

/// Whether nobody can read standard output any more.
pub fn stdout_reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [rustix::event::PollFd::new(&stdout, rustix::event::PollFlags::OUT)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
        && fds[0].revents().contains(rustix::event::PollFlags::ERR)
}

enum Sink {
    Quiet,
    /// Not a terminal: one line per change.
    Lines,
    Live(ProgressBar),
}

/// Tells on standard error how the application is doing.
pub struct Reporter {
    sink: Sink,
    tracker: Tracker,
    started: Instant,
    last: Option<ApplicationStatus>,
}

impl Reporter {
    /// `started`: when the command was given; the elapsed time counts from there.
    pub fn new(quiet: bool, started: Instant) -> Self {
        let sink = if quiet {
            Sink::Quiet
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            Sink::Live(bar)
        } else {
            Sink::Lines
        };
        Self { sink, tracker: Tracker::default(), started, last: None }
    }

    /// For an [`Output`] that may write to the same terminal.
    pub fn bar(&self) -> Option<ProgressBar> {
        match &self.sink {
            Sink::Live(bar) => Some(bar.clone()),
            _ => None,
        }
    }

    pub fn is_live(&self) -> bool {
        matches!(self.sink, Sink::Live(_))
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        // Nothing is owed to a standard error that is closed.
        let print = || drop(writeln!(io::stderr(), "{line}"));
        match &self.sink {
            Sink::Quiet => {}
            Sink::Lines => print(),
            Sink::Live(bar) => bar.suspend(print),
        }
    }

    pub fn submitted(&self, id: &str, resource: &str, ui_url: &str) {
        let ui = if ui_url.is_empty() { String::new() } else { format!(", {}", display::one_line(ui_url)) };
        self.note(&format!("submitted {} as {}{ui}", display::one_line(resource), display::one_line(id)));
    }

    pub fn update(&mut self, status: &ApplicationStatus) {
        let lines = self.tracker.update(status);
        for line in lines.iter().filter(|line| line.keep || !self.is_live()) {
            self.note(&line.text);
        }
        if self.is_live() {
            self.last = Some(status.clone());
            self.redraw();
        }
    }

    /// Shows the current elapsed time.
    pub fn redraw(&self) {
        if let (Sink::Live(bar), Some(status)) = (&self.sink, &self.last) {
            let width = match rustix::termios::tcgetwinsize(io::stderr()) {
                Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
                _ => 80,
            };
            // Setting it draws it.
            bar.set_message(progress::live(status, self.started.elapsed(), width - 1));
        }
    }

    /// Takes the progress line off the screen; `verb` says how it ended ("finished in", "failed after").
    pub fn end(&mut self, verb: &str) {
        self.clear();
        self.note(&format!("{verb} {}", display::duration(self.started.elapsed())));
    }

    pub fn clear(&mut self) {
        self.last = None;
        if let Sink::Live(bar) = &self.sink {
            bar.finish_and_clear();
        }
    }
}
