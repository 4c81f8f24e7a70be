//! Bazel fills the cache in one checkout and hits every action in another.
#![cfg(test)]

use std::fs;

use gorego_integration::{
    bazel::{Build, Checkout},
    lock::Lock,
    server::Server,
    workspace,
};

/// The least number of actions of a meaningful workspace.
const ACTIONS: usize = 200;

/// Builds and tests everything, crashes the server, and repeats that in another checkout. Returns both
/// builds.
fn build_twice(startup: &[&str], options: &[&str]) -> (Build, Build) {
    let _lock = Lock::bazel();
    let server = Server::start(&[]);
    let mut arguments = vec!["test", "//..."];
    arguments.extend(options);

    let here = Checkout::new(workspace::write_mixed);
    let first = here.bazel(&server.grpc_url(), startup, &arguments);
    let server = server.restart();
    let there = Checkout::new(workspace::write_mixed);
    let second = there.bazel(&server.grpc_url(), startup, &arguments);

    for (checkout, what) in [(&here, "first"), (&there, "second")] {
        let output = fs::read_to_string(checkout.output("of_program.txt"));
        let output = output.unwrap_or_else(|e| panic!("the {what} build's output: {e}"));
        assert!(output.ends_with("ran\n"), "{output}");
    }
    (first, second)
}

/// Checks that the first build ran every cacheable action, and the second none.
fn assert_second_build_is_all_hits(first: &Build, second: &Build) {
    assert!(!first.cacheable().any(|spawn| spawn.cache_hit));
    let actions = first.cacheable().count();
    assert!(actions >= ACTIONS, "only {actions} actions");
    assert_eq!(second.cacheable().count(), actions);
    second.assert_all_remote_hits();
}

#[test]
fn another_checkout_hits_every_action_after_a_crash_of_the_server() {
    let (first, second) = build_twice(&[], &["--remote_download_all"]);
    assert_second_build_is_all_hits(&first, &second);
}

#[test]
fn another_checkout_hits_every_action_with_compression() {
    let (first, second) = build_twice(
        &[],
        &["--remote_cache_compression", "--remote_download_all"],
    );
    assert_second_build_is_all_hits(&first, &second);
}

#[test]
fn another_checkout_hits_every_action_with_blake3_digests() {
    let (first, second) = build_twice(&["--digest_function=blake3"], &["--remote_download_all"]);
    assert_second_build_is_all_hits(&first, &second);
    let digest = second.output_digest("of_program.txt");
    assert_eq!(digest.hash_function_name, "BLAKE3");
}
