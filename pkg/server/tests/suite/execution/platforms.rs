//! Actions whose platform this node does not have.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gorego_execution::PeerPlatforms;
use gorego_storage::Digest;
use reapi::v2::{Command, Platform, execution_stage::Value, platform::Property};
use tonic::Code;

use super::*;

/// Starts a server with other nodes, and stores an action that requires a property.
async fn start(peers: PeerPlatforms) -> (ExecutingServer, Digest) {
    let server =
        ExecutingServer::with(|options| options.peer_platforms = Some(peers), |_| {}).await;
    let property = Property {
        name: "gpu".to_owned(),
        value: "2".to_owned(),
    };
    let platform = Platform {
        properties: vec![property],
    };
    #[expect(deprecated, reason = "clients of REAPI 2.1 put it there")]
    let command = Command {
        arguments: vec!["true".to_owned()],
        platform: Some(platform),
        ..Command::default()
    };
    let (action, blobs) = action_of(&command, b"");
    for blob in blobs {
        server.server.has(&blob).await;
    }
    (server, action)
}

#[tokio::test]
async fn an_action_that_no_node_can_run_is_refused_with_what_the_nodes_have() {
    let peers = PeerPlatforms::new(|_| false);
    let peers = peers.with_values(|name| vec![format!("no {name}")]);
    let (server, action) = start(peers.waiting(Duration::ZERO)).await;
    let refused = server.execute(request(&action)).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in [
        "gpu=2",
        "this node does not have it",
        "other nodes have \"gpu\": no gpu",
    ] {
        assert!(refused.message().contains(part), "{refused:?}");
    }
}

#[tokio::test]
async fn an_action_waits_until_a_node_can_run_it() {
    let is_met = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_met);
    // The node joins once it is asked for the second time.
    let changes = AtomicU64::new(0);
    let peers = PeerPlatforms::new(move |_| asked.swap(true, Relaxed))
        .with_version(move || changes.fetch_add(1, Relaxed));
    let (server, action) = start(peers).await;
    let mut messages = server.execute(request(&action)).await.unwrap();
    assert_eq!(messages.stage().await.1, Value::Queued);
}
