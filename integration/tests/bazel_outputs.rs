//! Bazel's outputs that are not downloaded, that are large, or that the cache has evicted.
#![cfg(test)]

use std::{
    fs::{self, File},
    path::Path,
    slice,
};

use bytes::Bytes;
use gorego_integration::{
    bazel::{Checkout, OutputDigest, Spawn},
    client::Client,
    content::{hash_of, uuid},
    lock::Lock,
    server::Server,
    workspace,
};
use reapi::v2::Digest;

const MIB: usize = 1024 * 1024;

fn hash_of_file(path: &Path) -> String {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    hash_of(file).unwrap()
}

fn reapi_digest(digest: &OutputDigest) -> Digest {
    Digest {
        hash: digest.hash.clone(),
        size_bytes: digest.size_bytes.parse().unwrap(),
    }
}

#[test]
fn a_build_without_the_bytes_downloads_outputs_when_an_action_needs_them() {
    let _lock = Lock::bazel();
    let server = Server::start(&[]);
    let options = ["test", "--remote_download_minimal", "//..."];
    let here = Checkout::new(workspace::write_mixed);
    here.bazel(&server.grpc_url(), &[], &options);

    let there = Checkout::new(workspace::write_mixed);
    let build = there.bazel(&server.grpc_url(), &[], &options);
    build.assert_all_remote_hits();
    assert!(!there.output("of_program.txt").exists());
    assert!(!there.output("g_7_0.txt").exists());

    // A new action runs locally and needs outputs that were not downloaded.
    let rules = fs::read_to_string(there.source().join("BUILD.bazel")).unwrap();
    let more = "genrule(name = \"more\", srcs = [\":of_tree\", \":g_7_0\"], \
                outs = [\"more.txt\"], tools = [\":program\"], \
                cmd = \"(cat $(SRCS); $(location :program)) > $@\")\n";
    workspace::write(&there.source(), "BUILD.bazel", &(rules + more));
    let build = there.bazel(&server.grpc_url(), &[], &["build", "//:more"]);
    let ran: Vec<&Spawn> = build.spawns.iter().filter(|s| !s.cache_hit).collect();
    assert_eq!(ran.len(), 1, "{ran:?}\n{}", build.console);
    let output = fs::read_to_string(there.output("more.txt")).unwrap();
    assert!(output.contains("./deep/er/same.txt"), "{output}");
}

/// Builds an output of 200 MiB in one checkout, and downloads it in another.
fn assert_large_output_comes_back(options: &[&str]) {
    let _lock = Lock::bazel();
    let server = Server::start(&[]);
    let mut arguments = vec!["build", "//:big"];
    arguments.extend(options);
    let write = |dir: &Path| workspace::write_big(dir, 200 * MIB);
    let here = Checkout::new(write);
    let build = here.bazel(&server.grpc_url(), &[], &arguments);
    let digest = build.output_digest("big.bin");

    let there = Checkout::new(write);
    let build = there.bazel(&server.grpc_url(), &[], &arguments);
    build.assert_all_remote_hits();
    assert_eq!(build.output_digest("big.bin"), digest);
    assert_eq!(hash_of_file(&there.output("big.bin")), digest.hash);
}

#[test]
fn a_200_mib_output_is_uploaded_and_downloaded() {
    assert_large_output_comes_back(&[]);
}

#[test]
fn a_200_mib_output_is_uploaded_and_downloaded_with_compression() {
    assert_large_output_comes_back(&["--remote_cache_compression"]);
}

/// Uploads more than the 1 GiB that the cache may hold, so that it evicts `digest`.
async fn evict(server: &Server, digest: &Digest) {
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(1);
    for number in 0..40 {
        let filler = Bytes::from(vec![number; 32 * MIB]);
        let response = client.upload(&uuid(&mut rng), &filler).await;
        response.expect("the cache makes room");
    }
    let missing = client.find_missing(vec![digest.clone()]).await.unwrap();
    assert_eq!(missing, slice::from_ref(digest), "the blob was not evicted");
}

#[test]
fn a_build_succeeds_after_the_cache_evicted_outputs_that_it_needs() {
    let _lock = Lock::bazel();
    let server = Server::start(&["local_cache.max_size_gb=1", "local_cache.lease=0s"]);
    let write = |dir: &Path| workspace::write_two_steps(dir, 10 * MIB);
    let retries = "--experimental_remote_cache_eviction_retries=5";
    let minimal = ["build", "--remote_download_minimal", retries, "//:top"];
    let here = Checkout::new(write);
    here.bazel(&server.grpc_url(), &[], &minimal);
    let there = Checkout::new(write);
    let build = there.bazel(&server.grpc_url(), &[], &minimal);
    build.assert_all_remote_hits();
    assert!(!there.output("middle.bin").exists());

    let middle = reapi_digest(&build.output_digest("middle.bin"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(evict(&server, &middle));
    workspace::write(&there.source(), "source.txt", "second\n");
    let build = there.bazel(&server.grpc_url(), &[], &["build", retries, "//:top"]);
    let again = |spawn: &Spawn| spawn.target_label == "//:middle" && !spawn.cache_hit;
    assert!(build.spawns.iter().any(again), "{}", build.console);
    let output = fs::read_to_string(there.output("top.txt")).unwrap();
    assert!(output.ends_with("second\n"), "{output}");
}
