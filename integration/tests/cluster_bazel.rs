//! A build by Bazel in a cluster whose nodes fail meanwhile.
#![cfg(test)]

use std::{collections::BTreeMap, thread};

use gorego_integration::{
    bazel::{BazelServer, Build},
    binary, cluster,
    executor::descendants,
    lock::Lock,
    workspace,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

/// Returns the hash of each output by its path.
fn outputs(build: &Build) -> BTreeMap<String, String> {
    let elsewhere = build.spawns.iter().find(|spawn| spawn.runner != "remote");
    assert!(elsewhere.is_none(), "{elsewhere:?}\n{}", build.console);
    let outputs = build.spawns.iter().flat_map(|spawn| &spawn.actual_outputs);
    let outputs = outputs.map(|output| (output.path.clone(), output.digest.hash.clone()));
    outputs.collect()
}

#[test]
fn a_build_is_the_same_though_one_node_is_killed_and_another_stops() {
    let _lock = Lock::bazel();
    let runtime = Runtime::new().unwrap();
    let slots = ["execution.concurrency=2", "limits.drain_timeout=60s"];
    let [entry, mut killed, mut stopped] = runtime.block_on(cluster::start_in_root::<3>(&slots));
    let mut bazel = BazelServer::new(workspace::write_large);
    let url = entry.server.grpc_url();
    let executor = format!("--remote_executor={url}");
    let arguments = [
        "build",
        "//...",
        "--jobs=64",
        &executor,
        "--spawn_strategy=remote",
    ];
    let broken = thread::scope(|scope| {
        let building = scope.spawn(|| bazel.build(&url, &arguments));
        runtime.block_on(killed.wait_for_taken(10));
        killed.server.kill();
        runtime.block_on(stopped.wait_for_taken(30));
        // The process that was started only entered the root directory for it.
        let program = binary::gorego().file_name().unwrap().to_str().unwrap();
        let [server, ..] = descendants(stopped.server.id(), program)[..] else {
            panic!("no server");
        };
        let server = Pid::from_raw(server.cast_signed()).unwrap();
        kill_process(server, Signal::TERM).unwrap();
        building.join().unwrap()
    });
    assert!(stopped.server.wait().success());
    bazel.clean();
    let anew = [&arguments[..], &["--noremote_accept_cached"]].concat();
    let alone = bazel.build(&url, &anew);
    assert_eq!(outputs(&broken), outputs(&alone));
}
