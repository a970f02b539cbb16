//! What all pages share: the frame, states, bars, tables.

use super::assets;
use super::format::plural;
use firesteel_common::{ApplicationState, ExecutorState, MemorySize, WorkerStatus};
use firesteel_proto::v1::TaskState;
use maud::{DOCTYPE, Markup, html};

/// Seconds between reloads of a page on which something goes on.
const REFRESH_SECONDS: u32 = 2;

pub struct Page<'a> {
    pub title: &'a str,
    /// Whether the page changes by itself and should be loaded again.
    pub live: bool,
    /// Shown on the right of the head.
    pub master_url: &'a str,
    pub role: Role,
}

/// This master's part in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    NoLeader,
}

impl Page<'_> {
    pub fn render(&self, body: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    @if self.live { meta http-equiv="refresh" content=(REFRESH_SECONDS); }
                    title { (self.title) " · Firesteel" }
                    link rel="icon" href=(assets::icon_url());
                    link rel="stylesheet" href=(assets::style_url());
                }
                body {
                    header.top {
                        a.brand href="/" {
                            img src=(assets::icon_url()) alt="" width="22" height="22";
                            "Firesteel"
                        }
                        span.master { code { (self.master_url) } (role(self.role)) }
                    }
                    main { (body) }
                    footer {
                        "Firesteel " (env!("CARGO_PKG_VERSION"))
                        @if self.live { " · reloads every " (REFRESH_SECONDS) " s while something is active" }
                    }
                }
            }
        }
    }
}

fn role(role: Role) -> Markup {
    match role {
        Role::Leader => mark("good", "●", "leader"),
        Role::Follower => mark("quiet", "○", "follower"),
        Role::NoLeader => mark("bad", "✕", "no leader"),
    }
}

/// Icon, word and colour: never colour alone.
pub fn mark(tone: &str, icon: &str, word: &str) -> Markup {
    html! { span.state.(tone) { span.icon aria-hidden="true" { (icon) } (word) } }
}

pub fn application_state(state: ApplicationState) -> Markup {
    let (tone, icon) = match state {
        ApplicationState::Waiting => ("wait", "◔"),
        ApplicationState::Running => ("run", "▶"),
        ApplicationState::Finished => ("good", "✓"),
        ApplicationState::Failed => ("bad", "✕"),
        ApplicationState::Killed => ("quiet", "■"),
    };
    mark(tone, icon, &state.as_str().to_lowercase())
}

pub fn executor_state(state: ExecutorState) -> Markup {
    let (tone, icon) = match state {
        ExecutorState::Launching => ("wait", "◔"),
        ExecutorState::Running => ("run", "▶"),
        ExecutorState::Exited => ("good", "✓"),
        ExecutorState::Failed => ("bad", "✕"),
        ExecutorState::Killed => ("quiet", "■"),
        ExecutorState::Lost => ("bad", "?"),
    };
    mark(tone, icon, &state.as_str().to_lowercase())
}

pub fn worker_status(status: WorkerStatus) -> Markup {
    let (tone, icon) = match status {
        WorkerStatus::Alive => ("good", "●"),
        WorkerStatus::Dead => ("bad", "✕"),
        WorkerStatus::Left => ("quiet", "○"),
    };
    mark(tone, icon, &status.as_str().to_lowercase())
}

pub fn task_state(state: TaskState) -> Markup {
    let (tone, icon, word) = match state {
        TaskState::Pending => ("quiet", "◌", "pending"),
        TaskState::Running => ("run", "▶", "running"),
        TaskState::Succeeded => ("good", "✓", "succeeded"),
        TaskState::Failed => ("bad", "✕", "failed"),
        TaskState::Unspecified => ("quiet", "?", "unknown"),
    };
    mark(tone, icon, word)
}

/// Used of total as a bar. Drawn with attributes: the content security policy allows no inline style.
pub fn bar(used: u64, total: u64, label: &str) -> Markup {
    let percent = if total == 0 { 0.0 } else { (used as f64 / total as f64 * 100.0).min(100.0) };
    html! {
        svg.bar viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.track width="100" height="6" {}
            rect.fill width=(format!("{percent:.1}")) height="6" {}
        }
    }
}

/// Parts of a whole, side by side: (class, number).
pub fn parts_bar(parts: &[(&str, usize)], label: &str) -> Markup {
    let total: usize = parts.iter().map(|(_, n)| n).sum();
    let scale = if total == 0 { 0.0 } else { 100.0 / total as f64 };
    let mut start = 0.0;
    let drawn: Vec<_> = parts
        .iter()
        .map(|(class, n)| {
            let (from, width) = (start, *n as f64 * scale);
            start += width;
            (*class, format!("{from:.2}"), format!("{width:.2}"))
        })
        .collect();
    html! {
        svg.bar viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.track width="100" height="6" {}
            @for (class, from, width) in &drawn { rect.(class) x=(from) width=(width) height="6" {} }
        }
    }
}

pub fn used_of(used: u64, total: u64) -> Markup {
    html! {
        span.used { (used) " / " (total) }
        (bar(used, total, &format!("{used} of {} used", plural(total, "core"))))
    }
}

pub fn memory_used_of(used_mib: u64, total_mib: u64) -> Markup {
    let (used, total) = (MemorySize::from_mib(used_mib), MemorySize::from_mib(total_mib));
    html! {
        span.used { @if used_mib == 0 { "0" } @else { (used) } " / " (total) }
        (bar(used_mib, total_mib, &format!("{used} of {total} used")))
    }
}

/// A command to copy: one click selects the whole of it.
pub fn command(text: &str) -> Markup {
    html! { pre.command { code { (text) } } }
}

/// The head of a table whose cells become labelled lines on narrow screens.
pub fn head(columns: &[&str]) -> Markup {
    html! { thead { tr { @for column in columns { th scope="col" { (column) } } } } }
}

pub fn cell(label: &str, content: impl maud::Render) -> Markup {
    html! { td data-label=(label) { (content) } }
}

/// A cell with a number or a time, set to the right.
pub fn number_cell(label: &str, content: impl maud::Render) -> Markup {
    html! { td.number data-label=(label) { (content) } }
}
