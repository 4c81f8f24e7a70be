//! Measures builds by Bazel: the first one, again without cached results, and after a change of a source.

use std::{fs, time::Instant};

use gorego_integration::{backing::Backing, bazel::BazelServer, cluster, lock::Lock, workspace};
use tokio::runtime::Handle;

use crate::{Args, nodes::Work};

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
        let before = handle.block_on(Work::of_all(&nodes));
        let start = Instant::now();
        let spawns = bazel.build(&url, arguments).spawns.len();
        let took = start.elapsed().as_secs_f64();
        let after = handle.block_on(Work::of_all(&nodes));
        let (given, read) = (after.taken - before.taken, after.read - before.read);
        println!(
            "{name}: {took:.1} s, {spawns} actions, {given} handed over, {} KiB of blobs between nodes; \
             seconds of all actions: start elsewhere {:.2}, fetch {:.2}, run {:.2}",
            read >> 10,
            after.start - before.start,
            after.fetch - before.fetch,
            after.run - before.run,
        );
    }
}
