//! A build by Bazel in a cluster whose nodes fail meanwhile.
#![cfg(test)]

use std::{collections::BTreeMap, thread};

use gorego_integration::{
    bazel::{BazelServer, Build, Spawn},
    binary, cluster,
    executor::descendants,
    link::Link,
    lock::Lock,
    workspace,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

/// Returns the hash of each output by its path.
fn outputs(build: &Build) -> BTreeMap<String, String> {
    // An action that a client executes anew after the loss of its node may have a result by then.
    let is_remote = |spawn: &&Spawn| spawn.runner.starts_with("remote");
    let elsewhere = build.spawns.iter().find(|spawn| !is_remote(spawn));
    assert!(elsewhere.is_none(), "{elsewhere:?}\n{}", build.console);
    let outputs = build.spawns.iter().flat_map(|spawn| &spawn.actual_outputs);
    let outputs = outputs.map(|output| (output.path.clone(), output.digest.hash.clone()));
    outputs.collect()
}

/// Returns the arguments of a build on the nodes behind this address.
fn arguments(executor: &str) -> [&str; 5] {
    [
        "build",
        "//...",
        "--jobs=64",
        executor,
        "--spawn_strategy=remote",
    ]
}

/// Checks that a build has the outputs of another one, which uses no results of it.
fn assert_same(broken: &Build, bazel: &mut BazelServer, url: &str) {
    bazel.clean();
    let executor = format!("--remote_executor={url}");
    let anew = [&arguments(&executor)[..], &["--noremote_accept_cached"]].concat();
    let alone = bazel.build(url, &anew);
    assert_eq!(outputs(broken), outputs(&alone));
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
    let broken = thread::scope(|scope| {
        let building = scope.spawn(|| bazel.build(&url, &arguments(&executor)));
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
    assert_same(&broken, &mut bazel, &url);
}

#[test]
fn a_build_goes_on_at_another_node_when_its_own_is_killed() {
    let _lock = Lock::bazel();
    let runtime = Runtime::new().unwrap();
    let slots = ["execution.concurrency=2"];
    let [mut entry, other, third] = runtime.block_on(cluster::start_in_root::<3>(&slots));
    let mut bazel = BazelServer::new(workspace::write_large);
    // Like a name that resolves to the nodes that are up.
    let name = Link::to(entry.server.address());
    let url = name.grpc_url();
    let executor = format!("--remote_executor={url}");
    let broken = thread::scope(|scope| {
        let building = scope.spawn(|| bazel.build(&url, &arguments(&executor)));
        runtime.block_on(other.wait_for_taken(20));
        runtime.block_on(third.wait_for_taken(20));
        entry.server.kill();
        name.lead_to(other.server.address());
        name.cut();
        building.join().unwrap()
    });
    assert_same(&broken, &mut bazel, &url);
}
