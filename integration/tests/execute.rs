//! Actions that gorego executes for real clients.
#![cfg(test)]

use std::collections::BTreeMap;

use gorego_integration::{
    bazel::{Build, Checkout},
    lock::Lock,
    server::Server,
    workspace,
};

const EXECUTES: [&str; 1] = ["execution.enabled=true"];

/// Returns the hash of each output by its path. Those of tests contain durations.
fn outputs(build: &Build) -> BTreeMap<&str, &str> {
    let spawns = build.spawns.iter();
    let built = spawns.filter(|spawn| spawn.mnemonic != "TestRunner");
    let outputs = built.flat_map(|spawn| &spawn.actual_outputs);
    outputs
        .map(|output| (&*output.path, &*output.digest.hash))
        .collect()
}

/// Builds everything in a new checkout, and executes all actions at `server`.
fn build_at(server: &Server, options: &[&str]) -> Build {
    let executor = format!("--remote_executor={}", server.grpc_url());
    let mut arguments = vec!["test", &executor, "--spawn_strategy=remote", "//..."];
    arguments.extend(options);
    let checkout = Checkout::new(workspace::write_mixed);
    checkout.bazel(&server.grpc_url(), &[], &arguments)
}

#[test]
fn actions_that_run_here_have_the_outputs_of_a_local_build() {
    let _lock = Lock::bazel();
    let server = Server::start_in_root(&EXECUTES);
    let remote = build_at(&server, &["--jobs=200"]);
    let elsewhere = remote
        .spawns
        .iter()
        .filter(|spawn| spawn.runner != "remote");
    let elsewhere: Vec<_> = elsewhere.collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}\n{}", remote.console);

    let cache = Server::start(&[]);
    let local = Checkout::new(workspace::write_mixed);
    let local = local.bazel(&cache.grpc_url(), &[], &["test", "//..."]);
    assert_eq!(outputs(&remote), outputs(&local));

    build_at(&server, &["--remote_download_minimal"]).assert_all_remote_hits();
}
