//! The masters among themselves: who leads, who follows how closely, and whether they could lose one.

use super::View;
use super::format::{duration, moment, plural};
use super::layout::{cell, head, mark, number_cell};
use crate::membership::alive;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Nothing for a lone master: there is nothing to compare.
pub fn render(view: &View) -> Markup {
    let members = &view.members;
    let state = &view.published.state;
    let ids: BTreeSet<u64> = members
        .voters
        .iter()
        .chain(&members.learners)
        .copied()
        .chain(state.members().map(|m| m.id))
        .collect();
    if ids.len() < 2 {
        return html! {};
    }
    html! {
        section {
            h2 { "Masters " span.count { (ids.len()) } }
            table {
                (head(&["Master", "Role", "State", "Log", "Behind", "Last contact", "Version"]))
                tbody { @for id in ids { (row(view, id)) } }
            }
            p.note {
                "Term " (members.term) ", committed up to entry " (members.committed) ". "
                @if members.leading { (tolerance(view)) }
                @if let Some((position, written_ms)) = members.snapshot {
                    " This master's last snapshot is of entry " (position.index) ", written " (moment(written_ms, view.now_ms)) "."
                }
            }
        }
    }
}

/// How many more may be lost.
fn tolerance(view: &View) -> String {
    let members = &view.members;
    let live = alive(members, view.now).intersection(&members.voters).count();
    match live.checked_sub(members.voters.len() / 2 + 1) {
        None => "Too few masters are alive.".to_owned(),
        Some(0) => "No master may be lost now: the cluster would stop taking work.".to_owned(),
        Some(spare) => format!("{} may be lost without harm.", plural(spare as u64, "master")),
    }
}

fn row(view: &View, id: u64) -> Markup {
    let members = &view.members;
    let record = view.published.state.member(id);
    let me = id == members.member_id;
    let peer = members.peers.get(&id);
    let role = match () {
        () if members.leader_id == Some(id) => mark("good", "●", "leader"),
        () if members.voters.contains(&id) => mark("quiet", "○", "follower"),
        () if record.is_some_and(|m| m.non_voter) => mark("quiet", "◌", "non-voter"),
        () => mark("wait", "◔", "catching up"),
    };
    let matched = if me { Some(members.last_index) } else { peer.map(|p| p.matched) };
    let contact = peer.and_then(|p| p.last_contact);
    let state = match () {
        () if me || !members.leading => {
            html! { @if me { (mark("good", "✓", "this master")) } @else { span.quiet { "the leader knows" } } }
        }
        () if alive(members, view.now).contains(&id) => mark("good", "✓", "alive"),
        () => mark("bad", "✕", "silent"),
    };
    html! {
        tr {
            (cell("Master", html! {
                @match record {
                    Some(m) => { a href=(m.ui_url) { (m.client_address) } }
                    None => code { (format!("{id:x}")) }
                }
            }))
            (cell("Role", role))
            (cell("State", state))
            (number_cell("Log", html! {
                @if let Some(matched) = matched { (matched) } @else { span.quiet { "–" } }
            }))
            (number_cell("Behind", html! {
                @match matched {
                    Some(matched) => (members.committed.saturating_sub(matched)),
                    None => span.quiet { "–" },
                }
            }))
            (number_cell("Last contact", html! {
                @if me { span.quiet { "–" } }
                @else if let Some(at) = contact {
                    (duration(view.now.saturating_duration_since(at).as_millis() as u64)) " ago"
                } @else { span.quiet { "–" } }
            }))
            (cell("Version", record.map(|m| m.version.clone()).unwrap_or_default()))
        }
    }
}
