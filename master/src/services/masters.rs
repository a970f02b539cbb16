//! The masters themselves: who leads, who belongs to the group, and what operators change about it.

use crate::cluster::Cluster;
use crate::membership;
use firesteel_proto::v1;
use tonic::{Request, Response, Status};

pub struct MastersService {
    cluster: Cluster,
}

impl MastersService {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

#[tonic::async_trait]
impl v1::masters_server::Masters for MastersService {
    async fn who_leads(
        &self,
        _: Request<v1::WhoLeadsRequest>,
    ) -> Result<Response<v1::WhoLeadsResponse>, Status> {
        let published = self.cluster.published().borrow().clone();
        let hint = self.cluster.hint(&published);
        Ok(Response::new(v1::WhoLeadsResponse {
            cluster_id: self.cluster.cluster_id().to_owned(),
            // A lone voter leads however slow its disk is.
            leading: published.leader
                && (self.cluster.members().borrow().voters.len() < 2 || self.cluster.surely_leads()),
            leader: hint.leader,
            term: published.epoch.0,
            masters: hint.masters,
            ticket: published.applied,
        }))
    }

    async fn list_members(
        &self,
        _: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        self.cluster.must_lead()?;
        Ok(Response::new(membership::list(&self.cluster)))
    }

    async fn add_voter(
        &self,
        request: Request<v1::AddVoterRequest>,
    ) -> Result<Response<v1::AddVoterResponse>, Status> {
        let id = membership::add_voter(&self.cluster, &request.into_inner().id).await?;
        Ok(Response::new(v1::AddVoterResponse { id: format!("{id:x}") }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        let id = membership::remove(&self.cluster, &request.into_inner().id).await?;
        Ok(Response::new(v1::RemoveMemberResponse { id: format!("{id:x}") }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let id = membership::transfer(&self.cluster, &request.into_inner().id).await?;
        Ok(Response::new(v1::TransferLeadershipResponse { leader_id: format!("{id:x}") }))
    }

    async fn take_snapshot(
        &self,
        _: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        let index = self.cluster.snapshot_now().await?;
        Ok(Response::new(v1::TakeSnapshotResponse { index }))
    }
}
