//! The pages in a real browser: accessible, at three widths, light and dark, without content from elsewhere.
#![cfg(test)]

use std::{env, fs, path::Path};

use gorego_integration::{
    bazel::Checkout,
    browser::Browser,
    client::Client,
    content::digest_of,
    executor::{self, Gate, TestAction},
    link::Link,
    lock::Lock,
    peer::FaultyPeer,
    project,
    server::Server,
    web, workspace,
};
use tempfile::TempDir;

/// Writes a workspace of some targets.
fn write(dir: &Path) {
    workspace::write_two_steps(dir, 1);
    let target = |n: u32| {
        format!(
            "genrule(name = \"t{n}\", srcs = [\"source.txt\"], outs = [\"t{n}.txt\"], cmd = \"cp $< $@\")\n"
        )
    };
    let build: String = (0..8).map(target).collect();
    workspace::write(dir, "BUILD.bazel", &build);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_accessible_at_every_width_in_both_schemes() {
    let _lock = Lock::bazel();
    let server = Server::start(&["telemetry.metrics_addr=127.0.0.1:0"]);
    let build = |source: &str| {
        let checkout = Checkout::new(write);
        workspace::write(&checkout.source(), "source.txt", source);
        let options = ["build", "//...", "--action_env=API_TOKEN=secret"];
        checkout.bazel(&server.grpc_url(), &[], &options);
    };
    ["first", "second", "second"].into_iter().for_each(build);
    let is_done = |response: &web::Response| {
        let builds = &response.json()["builds"];
        builds[0]["total"]["hits"].as_u64() >= Some(8)
            && builds[1]["total"]["stored"].as_u64() >= Some(8)
    };
    let builds = web::wait_for(server.metrics(), "/api/v1/builds", is_done)
        .await
        .json();
    let missed = builds["builds"][1]["id"].as_str().unwrap();
    let details = web::get(server.metrics(), &format!("/api/v1/builds/{missed}"))
        .await
        .json();
    let action = details["misses"][0]["action"]
        .as_str()
        .unwrap()
        .replace('/', "-");
    let base = format!("http://{}", server.metrics());
    let pages = [
        "/".to_owned(),
        "/builds".to_owned(),
        format!("/builds/{missed}"),
        format!("/actions/{action}"),
        "/targets?label=//:t1".to_owned(),
    ];
    let urls = pages.map(|page| format!("{base}{page}"));
    let shots = TempDir::new().unwrap();
    Browser::install().check(&urls, shots.path());
    if env::var_os("UPDATE_DOCS").is_some() {
        let docs = project::root().join("docs");
        fs::create_dir_all(&docs).unwrap();
        fs::copy(
            shots.path().join("top_-1280-light.png"),
            docs.join("overview.png"),
        )
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_actions_is_accessible_at_every_width_in_both_schemes() {
    let _lock = Lock::bazel();
    let (server, executor) = executor::start(&["telemetry.metrics_addr=127.0.0.1:0"]).await;
    executor.execute(&TestAction::script("exit 3")).await;
    let mut gate = Gate::new();
    let mut running = executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    let pages = ["/", "/actions"].map(|page| format!("http://{}{page}", server.metrics()));
    let shots = TempDir::new().unwrap();
    Browser::install().check(&pages, shots.path());
    gate.open();
    running.response().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn error_pages_are_accessible_at_every_width_in_both_schemes() {
    let _lock = Lock::bazel();
    let served = "telemetry.metrics_addr=127.0.0.1:0";
    let hidden = Server::start(&[served, "telemetry.ui=off"]);
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    // It reads actions from the backing cache, which answers the server's start only.
    let waiting = Server::in_front_of(&link.grpc_url(), &[served, "local_cache.enabled=false"]);
    link.stall();
    let action = digest_of(b"action").hash;
    let pages = [
        format!("403=http://{}/", hidden.metrics()),
        format!("404=http://{}/nowhere", waiting.metrics()),
        format!("404=http://{}/builds/none", waiting.metrics()),
        format!("400=http://{}/builds?from=x", waiting.metrics()),
        format!("503=http://{}/actions/{action}-6", waiting.metrics()),
    ];
    let shots = TempDir::new().unwrap();
    Browser::install().check(&pages, shots.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_build_in_progress_shows_calls_without_being_loaded_again() {
    let _lock = Lock::bazel();
    let server = Server::start(&["telemetry.metrics_addr=127.0.0.1:0"]);
    let browser = Browser::install();
    let miss = async |number: usize| {
        let action = digest_of(&[u8::try_from(number).unwrap()]);
        Client::miss_in_build(server.address(), "build", "//:t", &action).await;
        let is_recorded = |response: &web::Response| {
            response.status == 200 && response.json()["head"]["total"]["misses"] == number
        };
        web::wait_for(server.metrics(), "/api/v1/builds/build", is_recorded).await;
    };
    miss(1).await;
    let url = format!("http://{}/builds/build", server.metrics());
    let page = browser.open(&url, "0 of 1 lookup");
    miss(2).await;
    page.expect("0 of 2 lookups");
}
