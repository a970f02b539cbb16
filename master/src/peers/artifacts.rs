//! Scripts on more than one master: none is promised before a majority has it, and whoever lacks one fetches it.

use crate::cluster::Cluster;
use crate::services::artifact_status;
use firesteel_proto::{channel, v1};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use v1::artifact_part::Kind;
use v1::peers_client::PeersClient;

/// What a copy to, or from, one other master may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns when a majority of the voters, this master among them, has the artifact on disk.
pub async fn replicate(cluster: &Cluster, sha256: &str) -> Result<(), Status> {
    let view = cluster.members().borrow().clone();
    let needed = view.voters.len() / 2 + 1;
    let mut have = usize::from(view.voters.contains(&view.member_id));
    let mut copying = JoinSet::new();
    // Learners get theirs with the first look at the state (see `keep_complete`).
    for &id in view.voters.iter().filter(|id| **id != view.member_id) {
        let (cluster, sha256) = (cluster.clone(), sha256.to_owned());
        copying.spawn(async move {
            let copied = tokio::time::timeout(COPY_TIMEOUT, put(&cluster, id, &sha256)).await;
            copied.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        });
    }
    let mut reasons = Vec::new();
    while have < needed {
        match copying.join_next().await {
            Some(Ok(Ok(()))) => have += 1,
            Some(Ok(Err(status))) => reasons.push(status.message().to_owned()),
            // A copy that panicked has not been made.
            Some(Err(error)) => reasons.push(error.to_string()),
            None => {
                return Err(Status::unavailable(format!(
                    "only {have} of {} masters could store the script ({})\nhint: try again when more masters are up",
                    view.voters.len(),
                    reasons.join("; ")
                )));
            }
        }
    }
    // The others go on by themselves.
    copying.detach_all();
    Ok(())
}

async fn client(cluster: &Cluster, id: u64) -> Result<PeersClient<tonic::transport::Channel>, Status> {
    let address = cluster.addresses().get(id).map(|a| a.raft);
    let address =
        address.ok_or_else(|| Status::unavailable(format!("the address of member {id:x} is not known")))?;
    let channel = channel::connect_peer(&address).await.map_err(|e| Status::unavailable(e.to_string()))?;
    Ok(PeersClient::new(channel))
}

async fn put(cluster: &Cluster, id: u64, sha256: &str) -> Result<(), Status> {
    let file = cluster.artifacts().read(sha256).await.map_err(artifact_status)?;
    let mut file = file.ok_or_else(|| Status::not_found("the artifact is gone"))?;
    let mut data = Vec::new();
    file.read_to_end(&mut data).await.map_err(|e| Status::internal(e.to_string()))?;
    let head =
        v1::PeerArtifactRequest { cluster_id: cluster.cluster_id().to_owned(), sha256: sha256.to_owned() };
    let pieces: Vec<_> = data.chunks(channel::CHUNK_BYTES).map(|c| Kind::Data(c.to_vec())).collect();
    let parts =
        std::iter::once(Kind::Head(head)).chain(pieces).map(|kind| v1::ArtifactPart { kind: Some(kind) });
    client(cluster, id).await?.put_artifact(tokio_stream::iter(parts)).await.map(drop)
}

/// Makes sure that the artifact is here; asks every other member for one that is not. Whether it is here now.
pub async fn obtain(cluster: &Cluster, sha256: &str) -> Result<bool, Status> {
    if cluster.artifacts().contains(sha256).await {
        return Ok(true);
    }
    let mut unsure = None;
    let others = cluster.addresses().all().into_keys().filter(|id| *id != cluster.member_id());
    for id in others {
        match tokio::time::timeout(COPY_TIMEOUT, get(cluster, id, sha256)).await {
            Ok(Ok(())) => {
                tracing::info!(sha256, from = %format!("{id:x}"), "fetched an artifact from another master");
                return Ok(true);
            }
            Ok(Err(status)) if status.code() == Code::NotFound => {}
            Ok(Err(status)) => unsure = Some(format!("{id:x}: {}", status.message())),
            Err(_) => unsure = Some(format!("{id:x} does not answer")),
        }
    }
    match unsure {
        None => Ok(false),
        Some(why) => {
            Err(Status::unavailable(format!("not every master could be asked for the script ({why})")))
        }
    }
}

async fn get(cluster: &Cluster, id: u64, sha256: &str) -> Result<(), Status> {
    let request =
        v1::PeerArtifactRequest { cluster_id: cluster.cluster_id().to_owned(), sha256: sha256.to_owned() };
    let mut chunks = client(cluster, id).await?.get_artifact(request).await?.into_inner();
    let mut upload = cluster.artifacts().upload().await.map_err(artifact_status)?;
    while let Some(chunk) = chunks.message().await? {
        upload.write(&chunk.data).await.map_err(artifact_status)?;
    }
    upload.finish_as(sha256).await.map_err(artifact_status)
}

/// Fetches what active applications need and this master lacks, so that any of them can serve it after a failover.
pub async fn keep_complete(cluster: Cluster) {
    const RETRY: Duration = Duration::from_secs(5);
    let mut published = cluster.published();
    let mut present = std::collections::BTreeSet::new();
    loop {
        let state = published.borrow_and_update().state.clone();
        let wanted: std::collections::BTreeSet<_> =
            state.active().map(|app| app.spec.artifact.clone()).filter(|hash| !hash.is_empty()).collect();
        present.retain(|hash| wanted.contains(hash));
        let mut lacking = false;
        for hash in wanted.iter().filter(|hash| !present.contains(*hash)).cloned().collect::<Vec<_>>() {
            match obtain(&cluster, &hash).await {
                Ok(true) => drop(present.insert(hash)),
                _ => lacking = true,
            }
        }
        tokio::select! {
            () = cluster.stopping().cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if lacking => {}
        }
    }
}
