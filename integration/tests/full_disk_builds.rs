//! The records of builds on a disk that becomes full.
#![cfg(test)]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gorego_integration::{
    client::{Client, add_request_metadata},
    content::digest_of,
    server::{Disk, Server},
    web,
};
use reapi::v2::{
    ActionResult, Digest, GetActionResultRequest, RequestMetadata,
    action_cache_client::ActionCacheClient,
};
use serde_json::Value;
use tonic::Request;

const DISK: Disk = Disk {
    mib: 24,
    prepare: "true",
};
const PAGE: &str = "telemetry.metrics_addr=127.0.0.1:0";
/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);
/// The actions that the build during the full disk misses: their record takes far more than a block, which the cache
/// may free at any time.
const MISSES: u32 = 100;

/// Looks an action up in the build `build`; returns whether there is a result.
async fn is_hit(client: &Client, build: &str, action: &Digest) -> bool {
    let mut request = Request::new(GetActionResultRequest {
        action_digest: Some(action.clone()),
        ..GetActionResultRequest::default()
    });
    let metadata = RequestMetadata {
        tool_invocation_id: build.to_owned(),
        target_id: "//pkg:target".to_owned(),
        ..RequestMetadata::default()
    };
    add_request_metadata(request.metadata_mut(), &metadata);
    let mut results = ActionCacheClient::new(client.channel());
    results.get_action_result(request).await.is_ok()
}

/// Returns which of these builds are in a data directory.
fn saved<'a>(data: &Path, builds: &[&'a str]) -> Vec<&'a str> {
    let files = fs::read_dir(data.join("builds")).into_iter().flatten();
    let contents: Vec<_> = files
        .flatten()
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .collect();
    let is_saved = |build: &&str| {
        let id = format!(r#""id":"{build}""#);
        contents.iter().any(|content| content.contains(&id))
    };
    builds.iter().copied().filter(is_saved).collect()
}

async fn wait_until_saved(server: &Server, builds: &[&str]) {
    let start = Instant::now();
    while saved(&server.data(), builds) != builds {
        assert!(start.elapsed() < PATIENCE, "{}", server.log());
        tokio::task::yield_now().await;
    }
}

/// Returns the counts of a build, once it is recorded with that many misses.
async fn counts(server: &Server, build: &str, misses: u32) -> Value {
    let path = format!("/api/v1/builds/{build}");
    let is_recorded = |response: &web::Response| {
        response.status == 200 && response.json()["head"]["total"]["misses"] == misses
    };
    let response = web::wait_for(server.metrics(), &path, is_recorded).await;
    response.json()["head"]["total"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_stay_in_memory_while_the_disk_is_full_and_are_saved_afterwards() {
    let settings = [PAGE, "local_cache.max_size_gb=1", "local_cache.min_free=0"];
    let server = Server::start_on(DISK, &settings);
    let client = Client::connect(server.address()).await;
    let action = digest_of(b"action");
    client
        .put_action(&action, ActionResult::default())
        .await
        .unwrap();
    assert!(is_hit(&client, "before", &action).await);
    wait_until_saved(&server, &["before"]).await;

    let filler = server.data().join("filler");
    let filled = fs::write(&filler, vec![0; DISK.mib as usize * 1024 * 1024]);
    filled.expect_err("the disk is smaller");
    assert!(is_hit(&client, "full", &action).await);
    for number in 0..MISSES {
        let unknown = digest_of(&number.to_le_bytes());
        assert!(!is_hit(&client, "full", &unknown).await);
    }
    let total = counts(&server, "full", MISSES).await;
    assert_eq!(total["hits"], 1);
    let failure = "failed to save recent builds, which stay in memory";
    let log = server.wait_for_log(failure);
    let line = log.lines().find(|line| line.contains(failure)).unwrap();
    assert!(
        line.contains("free space on the disk of local_cache.dir"),
        "{line}"
    );
    assert_eq!(saved(&server.data(), &["before", "full"]), ["before"]);

    // What a crash would leave on the full disk is read by the next start.
    let mut next = Server::start(&[PAGE]);
    next.kill();
    let (from, to) = (server.data().join("builds"), next.data().join("builds"));
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let next = next.restart();
    assert_eq!(counts(&next, "before", 0).await["hits"], 1);
    assert!(!next.log().contains("failed"), "{}", next.log());

    fs::remove_file(&filler).unwrap();
    assert!(is_hit(&client, "after", &action).await);
    wait_until_saved(&server, &["before", "full", "after"]).await;
    let log = server.wait_for_log("saved recent builds again");
    assert_eq!(log.matches(failure).count(), 1, "{log}");
}
