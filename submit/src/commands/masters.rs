//! `submit masters`: who the masters are, and changes to their group.

use super::{json, table};
use crate::cli::{ListFormat, MastersCommand};
use crate::display::{count, duration, one_line};
use crate::exit::{Exit, Failure, may_have_been_done};
use crate::master::{Cluster, RequestError};
use crate::output::print;
use firesteel_proto::masters::Leader;
use firesteel_proto::v1::masters_client::MastersClient;
use firesteel_proto::v1::{
    AddVoterRequest, ListMembersRequest, ListMembersResponse, Member, MemberRole, RemoveMemberRequest,
    TakeSnapshotRequest, TransferLeadershipRequest,
};
use serde_json::{Value, json};
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// So much of an id is shown, or more where that would not tell members apart.
const ID_LEN: usize = 8;

pub async fn list(cluster: &Cluster, format: ListFormat) -> Result<Exit, Failure> {
    print(&render(&members(cluster).await?, format))?;
    Ok(Exit::Success)
}

pub async fn change(cluster: &Cluster, action: MastersCommand) -> Result<Exit, Failure> {
    let done = match action {
        MastersCommand::Add { id } => format!("{} votes", add(cluster, &id).await?),
        MastersCommand::Remove { id, yes } => format!("{} removed", remove(cluster, &id, yes).await?),
        MastersCommand::Transfer { id } => {
            format!("{} leads", transfer(cluster, &id.unwrap_or_default()).await?)
        }
        MastersCommand::Snapshot => format!("snapshot of index {} written", snapshot(cluster).await?),
    };
    print(&format!("{}\n", one_line(&done)))?;
    Ok(Exit::Success)
}

fn client(leader: &Leader) -> MastersClient<Channel> {
    MastersClient::new(leader.channel.clone())
}

async fn members(cluster: &Cluster) -> Result<ListMembersResponse, Failure> {
    let list = async |leader| client(&leader).list_members(ListMembersRequest {}).await;
    Ok(cluster.request(list).await.map_err(|error| failure(error, "list the masters"))?.into_inner())
}

async fn add(cluster: &Cluster, id: &str) -> Result<String, Failure> {
    let request = AddVoterRequest { id: id.to_owned() };
    let add = async |leader| client(&leader).add_voter(request.clone()).await;
    let answer = cluster.request(add).await;
    Ok(answer.map_err(|error| failure(error, &format!("add {id}")))?.into_inner().id)
}

async fn remove(cluster: &Cluster, id: &str, yes: bool) -> Result<String, Failure> {
    let mut id = id.to_owned();
    if !yes {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(Failure::usage("nobody can be asked whether to remove a master for good")
                .hint(format!("submit masters remove {id} --yes")));
        }
        let members = members(cluster).await?;
        let member = find(&members.members, &id)?;
        let question = question(member);
        // Off the runtime's only thread, which keeps the connection alive.
        let asked = tokio::task::spawn_blocking(move || {
            confirm(&mut io::stdin().lock(), &mut io::stderr(), &question)
        });
        if !matches!(asked.await, Ok(Ok(true))) {
            return Err(Failure::new(Exit::ApplicationFailed, "nothing was removed"));
        }
        // What was shown is what goes, whoever has joined since.
        id = member.id.clone();
    }
    let request = RemoveMemberRequest { id: id.clone() };
    let mut unsure = false;
    let removed = cluster
        .request(async |leader| {
            let answer = client(&leader).remove_member(request.clone()).await;
            unsure |= answer.as_ref().is_err_and(may_have_been_done);
            answer
        })
        .await;
    match removed {
        Ok(answer) => Ok(answer.into_inner().id),
        // The answer to an earlier attempt was lost, not the removal.
        Err(RequestError::Status(status)) if unsure && status.code() == Code::NotFound => Ok(id),
        Err(error) => Err(failure(error, &format!("remove {id}"))),
    }
}

/// The id of the new leader.
async fn transfer(cluster: &Cluster, id: &str) -> Result<String, Failure> {
    // Who has been asked and may have done it.
    let mut unsure: Option<String> = None;
    let transferred = cluster
        .request(async |leader| {
            if id.is_empty() && unsure.as_ref().is_some_and(|asked| *asked != leader.address) {
                // The answer was lost, not the transfer. Saying it again would pass the lead on once more.
                let members = client(&leader).list_members(ListMembersRequest {}).await?.into_inner().members;
                let leading = members.into_iter().find(|member| member.role() == MemberRole::Leader);
                return Ok(leading.map_or_else(|| leader.address.clone(), |member| member.id));
            }
            let request = TransferLeadershipRequest { id: id.to_owned() };
            let answer = client(&leader).transfer_leadership(request).await;
            if answer.as_ref().is_err_and(may_have_been_done) {
                unsure = Some(leader.address);
            }
            Ok(answer?.into_inner().leader_id)
        })
        .await;
    transferred.map_err(|error| failure(error, "transfer the lead"))
}

async fn snapshot(cluster: &Cluster) -> Result<u64, Failure> {
    let take = async |leader| client(&leader).take_snapshot(TakeSnapshotRequest {}).await;
    let answer = cluster.request(take).await;
    Ok(answer.map_err(|error| failure(error, "take a snapshot"))?.into_inner().index)
}

/// As for applications, but what is unknown or refused here is a master.
fn failure(error: RequestError, doing: &str) -> Failure {
    let refusal = |status: &Status, exit| Failure::new(exit, format!("cannot {doing}: {}", status.message()));
    match &error {
        RequestError::Status(status) if status.code() == Code::NotFound => {
            refusal(status, Exit::Usage).hint("`submit masters` shows the ids")
        }
        RequestError::Status(status) if status.code() == Code::FailedPrecondition => {
            refusal(status, Exit::ApplicationFailed).hint("`submit masters` shows how the masters stand")
        }
        _ => error.failure(doing),
    }
}

fn find<'a>(members: &'a [Member], id: &str) -> Result<&'a Member, Failure> {
    let start = id.to_ascii_lowercase();
    let mut matching = members.iter().filter(|member| !start.is_empty() && member.id.starts_with(&start));
    match (matching.next(), matching.next()) {
        (Some(member), None) => Ok(member),
        (None, _) => {
            Err(Failure::usage(format!("no master has the id {id:?}")).hint("`submit masters` shows the ids"))
        }
        (Some(_), Some(_)) => Err(Failure::usage(format!("several masters' ids begin with {id:?}"))
            .hint("give more of it; `submit masters` shows the ids")),
    }
}

fn question(member: &Member) -> String {
    format!(
        "remove {} ({}, {})? It can come back only as a new member, with an empty data directory. [y/N] ",
        one_line(&member.id),
        one_line(&member.client_address),
        role(member)
    )
}

fn confirm(answers: &mut impl BufRead, screen: &mut impl Write, question: &str) -> io::Result<bool> {
    screen.write_all(question.as_bytes())?;
    screen.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn render(answer: &ListMembersResponse, format: ListFormat) -> String {
    match format {
        ListFormat::Json => {
            let members: Vec<Value> =
                answer.members.iter().map(|member| document(member, answer.committed)).collect();
            let all = json!({
                "cluster_id": answer.cluster_id,
                "term": answer.term,
                "committed": answer.committed,
                "members": members,
            });
            format!("{all:#}\n")
        }
        ListFormat::Jsonl => {
            answer.members.iter().map(|member| format!("{}\n", document(member, answer.committed))).collect()
        }
        ListFormat::Table => {
            let len = id_len(&answer.members);
            table(
                &["ID", "ROLE", "ADDRESS", "RAFT", "LAG", "LAST CONTACT", "STATE", "VERSION"],
                &["LAG"],
                answer.members.iter().map(|member| row(member, len, answer.committed)).collect(),
            )
        }
    }
}

/// How much of each id tells it from the others.
fn id_len(members: &[Member]) -> usize {
    let mut ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
    ids.sort_unstable();
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    ids.windows(2).map(|pair| common(pair[0], pair[1]) + 1).max().unwrap_or_default().max(ID_LEN)
}

fn row(member: &Member, id_len: usize, committed: u64) -> Vec<String> {
    // The leader is the one that was asked: only it knows all this.
    let asked = if member.role() == MemberRole::Leader { "*" } else { "" };
    vec![
        one_line(&member.id.chars().take(id_len).collect::<String>()),
        format!("{}{asked}", role(member)),
        one_line(&member.client_address),
        one_line(&member.raft_address),
        count(lag(member, committed)),
        match member.last_contact_ms {
            _ if member.role() == MemberRole::Leader => String::new(),
            Some(ms) => format!("{} ago", duration(Duration::from_millis(ms))),
            None => "none".to_owned(),
        },
        state(member).to_owned(),
        one_line(&member.version),
    ]
}

fn role(member: &Member) -> &'static str {
    match member.role() {
        MemberRole::Leader => "leader",
        MemberRole::Follower => "follower",
        MemberRole::Learner if member.non_voter => "non-voter",
        MemberRole::Learner => "learner",
        MemberRole::Unspecified => "unknown",
    }
}

fn state(member: &Member) -> &'static str {
    if member.alive { "alive" } else { "silent" }
}

/// How many committed entries it has not got.
fn lag(member: &Member, committed: u64) -> u64 {
    committed.saturating_sub(member.matched)
}

fn document(member: &Member, committed: u64) -> Value {
    json::object(json!({
        "id": member.id,
        "role": role(member),
        "address": json::text(&member.client_address),
        "raft_address": json::text(&member.raft_address),
        "ui_url": json::text(&member.ui_url),
        "matched": member.matched,
        "lag": lag(member, committed),
        "last_contact_ms": member.last_contact_ms,
        "state": state(member),
        "version": json::text(&member.version),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, role: MemberRole, matched: u64, last_contact_ms: Option<u64>) -> Member {
        Member {
            id: id.into(),
            role: role.into(),
            client_address: format!("{id}:7077"),
            raft_address: format!("{id}:7078"),
            version: "0.1.0".into(),
            matched,
            last_contact_ms,
            alive: last_contact_ms.is_some(),
            ..Default::default()
        }
    }

    fn three() -> ListMembersResponse {
        ListMembersResponse {
            cluster_id: "c1".into(),
            term: 4,
            committed: 12_000,
            members: vec![
                member("a1b2c3d4e5f60718", MemberRole::Leader, 12_000, Some(0)),
                member("b1b2c3d4e5f60718", MemberRole::Follower, 11_990, Some(120)),
                member("c1b2c3d4e5f60718", MemberRole::Learner, 0, None),
            ],
        }
    }

    #[test]
    fn a_table_shows_who_leads_and_who_lags() {
        let text = render(&three(), ListFormat::Table);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1][..2], ["a1b2c3d4", "leader*"]);
        assert_eq!(words[1][4..], ["0", "alive", "0.1.0"]);
        assert_eq!(words[2][..2], ["b1b2c3d4", "follower"]);
        assert_eq!(words[2][4..], ["10", "120", "ms", "ago", "alive", "0.1.0"]);
        assert_eq!(words[3][4..], ["12,000", "none", "silent", "0.1.0"]);
    }

    #[test]
    fn ids_are_cut_where_they_differ() {
        let ids = |ids: &[&str]| {
            id_len(&ids.iter().map(|id| member(id, MemberRole::Follower, 0, None)).collect::<Vec<_>>())
        };
        assert_eq!(ids(&["a1b2c3d4e5f60718"]), 8);
        assert_eq!(ids(&["a1b2c3d4e5f60718", "b1b2c3d4e5f60718"]), 8);
        assert_eq!(ids(&["a1b2c3d4e5f60718", "ffffffffffffffff", "a1b2c3d4e5000000"]), 11);
    }

    #[test]
    fn json_holds_the_whole_ids() {
        let value: Value = serde_json::from_str(&render(&three(), ListFormat::Json)).unwrap();
        assert_eq!((&value["term"], &value["members"][0]["id"]), (&json!(4), &json!("a1b2c3d4e5f60718")));
        assert_eq!(value["members"][1]["lag"], 10);
        assert!(value["members"][2].get("last_contact_ms").is_none());
        let lines = render(&three(), ListFormat::Jsonl);
        assert_eq!(lines.lines().count(), 3);
        let value: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(value["role"], "leader");
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        let answer = |text: &str| {
            let mut screen = Vec::new();
            let yes = confirm(&mut text.as_bytes(), &mut screen, "really? ").unwrap();
            assert_eq!(screen, b"really? ");
            yes
        };
        assert!(answer("y\n") && answer("Yes\n") && answer("y"));
        assert!(!answer("") && !answer("\n") && !answer("no\n") && !answer("yesterday\n"));
    }

    #[test]
    fn an_abbreviation_must_name_one() {
        let members = three().members;
        assert_eq!(find(&members, "B1").unwrap().role(), MemberRole::Follower);
        assert!(find(&members, "d").unwrap_err().message.contains("no master has the id"));
        assert!(find(&members, "").is_err());
        let mut twins = members.clone();
        twins.push(member("b1ff", MemberRole::Follower, 0, None));
        assert!(find(&twins, "b1").unwrap_err().message.contains("several masters"));
    }
}
