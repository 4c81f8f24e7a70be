//! A build by Bazel in a cluster whose nodes fail meanwhile.
#![cfg(test)]

use std::{collections::BTreeMap, fs, path::Path, thread};

use gorego_integration::{
    bazel::{BazelServer, Build, Spawn},
    binary,
    cluster::{self, Node},
    executor::descendants,
    link::Link,
    lock::Lock,
    server::Server,
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

/// Writes a workspace whose actions take some time, so that nodes can change meanwhile.
fn write_slow(dir: &Path) {
    workspace::write_large(dir);
    let file = dir.join("wide/BUILD.bazel");
    let build = fs::read_to_string(&file).unwrap();
    let slow = build.replace("cmd = \"echo", "cmd = \"sleep 0.5; echo");
    assert_ne!(slow, build);
    fs::write(file, slow).unwrap();
}

/// Sends SIGTERM to a server in the root directory.
fn ask_to_stop(server: &Server) {
    // The process that was started only entered the root directory for it.
    let program = binary::gorego().file_name().unwrap().to_str().unwrap();
    let [server, ..] = descendants(server.id(), program)[..] else {
        panic!("no server");
    };
    let server = Pid::from_raw(server.cast_signed()).unwrap();
    kill_process(server, Signal::TERM).unwrap();
}

/// Changes the nodes while a build uses them: one is killed, starts again, and is asked to stop while it takes actions;
/// one joins; and one drains and stops. Returns the one that runs.
async fn change([mut killed, mut drained]: [Node; 2], join: &str, slots: &[&str]) -> Node {
    killed.wait_for_taken(10).await;
    killed.server.kill();
    let mut restarted = killed.restart().await;
    restarted.wait_for_taken(10).await;
    ask_to_stop(&restarted.server);
    assert!(restarted.server.wait().success());
    let joined = Node::start_in_root("d", join, slots).await;
    joined.wait_for_taken(1).await;
    let mut drain = drained.drain(&[]);
    assert!(drain.wait().success());
    ask_to_stop(&drained.server);
    assert!(drained.server.wait().success());
    joined
}

#[test]
fn a_build_is_the_same_though_nodes_are_killed_restarted_stopped_added_and_drained() {
    let _lock = Lock::bazel();
    let runtime = Runtime::new().unwrap();
    let slots = ["execution.concurrency=2", "limits.drain_timeout=60s"];
    let [entry, killed, drained] = runtime.block_on(cluster::start_in_root::<3>(&slots));
    let join = entry.mesh.to_string();
    let mut bazel = BazelServer::new(write_slow);
    // Starts it, which may take long.
    bazel.clean();
    let url = entry.server.grpc_url();
    let executor = format!("--remote_executor={url}");
    let broken = thread::scope(|scope| {
        let building = scope.spawn(|| bazel.build(&url, &arguments(&executor)));
        let joined = runtime.block_on(change([killed, drained], &join, &slots));
        let built = building.join().unwrap();
        drop(joined);
        built
    });
    assert_same(&broken, &mut bazel, &url);
}

#[test]
fn a_build_goes_on_at_another_node_when_its_own_is_killed() {
    let _lock = Lock::bazel();
    let runtime = Runtime::new().unwrap();
    let slots = ["execution.concurrency=2"];
    let [mut entry, other, third] = runtime.block_on(cluster::start_in_root::<3>(&slots));
    let mut bazel = BazelServer::new(workspace::write_large);
    bazel.clean();
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
