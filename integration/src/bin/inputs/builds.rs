//! Measures a real build: cold, anew on nodes that have most inputs, and after a change.

use std::{fs, time::Instant};

use gorego_integration::{
    backing::Backing,
    bazel::BazelServer,
    cluster::{self, Node},
    lock::Lock,
    workspace,
};
use tokio::runtime::Handle;

use crate::{Args, nodes};

pub(crate) fn measure(args: &Args, handle: &Handle) {
    let _lock = Lock::bazel();
    let backing = args.backing.map(|_| Backing::gorego(&[]));
    let mut settings = args.set.clone();
    settings.push(format!("execution.concurrency={}", args.slots));
    if let Some(backing) = &backing {
        settings.push(format!("backing_cache.target={}", backing.grpc_url()));
    }
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let nodes = handle.block_on(cluster::start_in_root::<3>(&settings));
    let mut bazel = BazelServer::new(workspace::write_large);
    let url = nodes.first().map(|node| node.server.grpc_url());
    let url = url.expect("three nodes were started");
    let (jobs, executor) = (
        format!("--jobs={}", args.jobs),
        format!("--remote_executor={url}"),
    );
    let build = [
        "build",
        "//...",
        &jobs,
        &executor,
        "--spawn_strategy=remote",
    ];
    let anew = [&build[..], &["--noremote_accept_cached"]].concat();
    for (name, arguments, is_clean) in [
        ("first build", &build[..], true),
        ("all actions again", &anew, true),
        ("all actions again", &anew, true),
        ("one source changed", &build, false),
    ] {
        if is_clean {
            bazel.clean();
        } else {
            let changed = fs::write(bazel.source().join("wide/in.txt"), "changed\n");
            changed.expect("a writable source");
        }
        let before = handle.block_on(moved(&nodes));
        let start = Instant::now();
        let spawns = bazel.build(&url, arguments).spawns.len();
        let took = start.elapsed().as_secs_f64();
        let after = handle.block_on(moved(&nodes));
        let (read, given) = (after.0 - before.0, after.1 - before.1);
        println!(
            "{name}: {took:.1} s, {spawns} actions, {given} handed over, {} KiB of blobs between nodes",
            read >> 10
        );
    }
}

/// Returns the bytes of blobs that nodes read from each other, and the attempts at other nodes.
async fn moved(nodes: &[Node]) -> (u64, u64) {
    let mut moved = (0, 0);
    for node in nodes {
        let (read, taken) = nodes::moved(node).await;
        moved = (moved.0 + read, moved.1 + taken);
    }
    moved
}
