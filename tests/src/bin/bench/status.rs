//! Asks the master for an application's final status, with the driver's last progress report.

use firesteel_common::MasterUrl;
use firesteel_proto::masters::Masters;
use firesteel_proto::v1;
use firesteel_proto::v1::client_client::ClientClient;

/// Waits for the end of the newest application and returns its status.
pub fn newest(url: &str) -> v1::ApplicationStatus {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let url: MasterUrl = url.parse().expect("the cluster's URL");
        let leader = Masters::new(&url).leader().await.expect("a master leads");
        let mut client = ClientClient::new(leader.channel);
        let list =
            client.list_applications(v1::ListApplicationsRequest {}).await.expect("a list").into_inner();
        let newest = list.applications.first().expect("an application").application_id.clone();
        let watch = v1::WatchApplicationRequest { application_id: newest };
        let mut updates = client.watch_application(watch).await.expect("a watch").into_inner();
        let mut last = None;
        while let Some(status) = updates.message().await.expect("an update") {
            last = Some(status);
        }
        last.expect("a final status")
    })
}
