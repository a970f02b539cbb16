//! Prometheus text format 0.0.4. Base units; no labels by application, whose number has no bound.

use super::{View, WebContext};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use firesteel_common::{ApplicationState, ExecutorState, Resources, WorkerStatus};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};

const MIB: u64 = 1 << 20;

pub async fn metrics(State(context): State<WebContext>) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, text(&View::of(&context)))
}

/// Gauges in the order of their calls.
#[derive(Default)]
struct Gauges(String);

impl Gauges {
    fn family(&mut self, name: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
    }
    fn one(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
    /// Every value of the label, also those that count 0: a series must not come and go.
    fn by<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, usize)>,
    ) {
        self.family(name, help);
        for (value, number) in values {
            let _ = writeln!(self.0, "{name}{{{label}=\"{}\"}} {number}", value.to_lowercase());
        }
    }
}

fn counted<T: Copy + Ord, const N: usize>(
    all: [T; N],
    name: impl Fn(T) -> &'static str,
    found: impl Iterator<Item = T>,
) -> Vec<(&'static str, usize)> {
    let mut counts: BTreeMap<T, usize> = all.iter().map(|t| (*t, 0)).collect();
    for item in found {
        *counts.entry(item).or_default() += 1;
    }
    counts.into_iter().map(|(item, number)| (name(item), number)).collect()
}

fn text(view: &View) -> String {
    let published = &view.published;
    let state = &published.state;
    let capacity = Resources::total(state.alive_workers().map(|w| w.capacity));
    let used = Resources::total(state.alive_workers().map(|w| w.used));
    let mut out = Gauges::default();

    use WorkerStatus::{Alive, Dead, Left};
    let workers = counted([Alive, Dead, Left], WorkerStatus::as_str, state.workers().map(|w| w.status));
    out.by("firesteel_workers", "Workers that the cluster remembers, by status.", "status", workers);
    out.one("firesteel_cluster_cores", "Cores of all alive workers.", capacity.cores);
    out.one("firesteel_cluster_cores_used", "Cores granted to drivers and executors.", used.cores);
    let bytes = capacity.memory_mib.saturating_mul(MIB);
    out.one("firesteel_cluster_memory_bytes", "Memory that all alive workers offer.", bytes);
    let bytes = used.memory_mib.saturating_mul(MIB);
    out.one("firesteel_cluster_memory_used_bytes", "Memory granted to drivers and executors.", bytes);

    use ApplicationState as A;
    let applications = counted(
        [A::Waiting, A::Running, A::Finished, A::Failed, A::Killed],
        A::as_str,
        state.applications().map(|app| app.state),
    );
    let help = "Applications that the cluster remembers, by state.";
    out.by("firesteel_applications", help, "state", applications);
    use ExecutorState as E;
    let executors = counted(
        [E::Launching, E::Running, E::Exited, E::Failed, E::Killed, E::Lost],
        E::as_str,
        state.active().flat_map(|app| app.executors.values().map(|e| e.state)),
    );
    let help = "Executors of waiting and running applications, by state; of those that ended the newest.";
    out.by("firesteel_executors", help, "state", executors);

    out.one(
        "firesteel_raft_term",
        "The Raft term, which is the epoch of all orders to workers.",
        published.epoch,
    );
    out.one("firesteel_raft_commit_index", "Log index known to be committed.", published.committed);
    out.one(
        "firesteel_raft_applied_index",
        "Log index up to which the state is worked out.",
        published.applied,
    );
    let leads = u8::from(published.leader);
    out.one("firesteel_raft_is_leader", "1 on the master that leads and is caught up, 0 elsewhere.", leads);

    let members = &view.members;
    out.one("firesteel_raft_voters", "Masters that vote.", members.voters.len());
    out.one(
        "firesteel_raft_learners",
        "Masters that receive everything and do not vote.",
        members.learners.len(),
    );
    let quorum = u8::from(members.quorum);
    out.one(
        "firesteel_raft_has_quorum",
        "1 while this master leads with, or hears from a leader of, a majority.",
        quorum,
    );
    out.one("firesteel_raft_first_index", "The first entry that the log still has.", members.first_index);
    out.one("firesteel_raft_last_index", "The last entry of the log.", members.last_index);
    if let Some((position, written_ms)) = members.snapshot {
        out.one("firesteel_raft_snapshot_index", "Log index of the newest snapshot.", position.index);
        let age = view.now_ms.saturating_sub(written_ms) as f64 / 1000.0;
        out.one("firesteel_raft_snapshot_age_seconds", "Seconds since the newest snapshot was written.", age);
    }
    if members.leading {
        out.family(
            "firesteel_raft_member_lag_entries",
            "Entries that a member is not known to have; on the leader.",
        );
        for (id, peer) in &members.peers {
            let lag = members.committed.saturating_sub(peer.matched);
            let _ = writeln!(out.0, "firesteel_raft_member_lag_entries{{member=\"{id:x}\"}} {lag}");
        }
        out.family(
            "firesteel_raft_member_silence_seconds",
            "Seconds since a member was heard; on the leader.",
        );
        for (id, peer) in &members.peers {
            if let Some(at) = peer.last_contact {
                let silence = view.now.saturating_duration_since(at).as_secs_f64();
                let _ = writeln!(
                    out.0,
                    "firesteel_raft_member_silence_seconds{{member=\"{id:x}\"}} {silence:.3}"
                );
            }
        }
    }

    if let Some(bytes) = resident_bytes() {
        out.one("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    let started = view.started_ms as f64 / 1000.0;
    out.one("process_start_time_seconds", "Start of the process in seconds since 1970.", started);
    out.family("firesteel_build_info", "1, labelled with the version of this master.");
    let _ = writeln!(out.0, "firesteel_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    out.0
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}
