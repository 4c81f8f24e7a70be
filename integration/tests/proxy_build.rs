//! Tests of Bazel builds through proxies.
#![cfg(test)]

use gorego_integration::{
    backing::Backing,
    bazel::{Build, Checkout},
    lock::Lock,
    server::Server,
    workspace,
};

/// The least number of actions of a meaningful workspace.
const ACTIONS: usize = 200;

fn in_front_of(server: &Server) -> Server {
    Server::in_front_of(&server.grpc_url(), &[])
}

fn build(server: &Server) -> Build {
    let checkout = Checkout::new(workspace::write_mixed);
    let arguments = ["test", "//...", "--remote_download_all"];
    checkout.bazel(&server.grpc_url(), &[], &arguments)
}

/// Builds through one proxy and then through another, and returns the second build.
fn shared(backing: &Backing) -> Build {
    let _lock = Lock::bazel();
    let here = Server::in_front_of(&backing.grpc_url(), &[]);
    assert!(build(&here).cacheable().count() >= ACTIONS);
    let there = Server::in_front_of(&backing.grpc_url(), &[]);
    build(&there)
}

#[test]
fn proxies_of_bazel_remote_share_builds() {
    shared(&Backing::bazel_remote()).assert_all_remote_hits();
}

#[test]
fn proxies_of_casd_share_builds() {
    let built = shared(&Backing::casd());
    // casd requires the directories of a tree as blobs, which Bazel does not upload, and reports such
    // results as missing.
    let missed = built.cacheable().filter(|spawn| !spawn.is_remote_hit());
    let missed: Vec<_> = missed.map(|spawn| spawn.target_label.as_str()).collect();
    assert_eq!(missed, ["//:tree"], "{}", built.console);
}

#[test]
fn a_chain_of_three_caches_stores_a_build_in_each() {
    let _lock = Lock::bazel();
    let last = Server::start(&[]);
    let middle = in_front_of(&last);
    let first = in_front_of(&middle);
    let built = build(&first);
    assert!(built.cacheable().count() >= ACTIONS);

    // A new proxy, without content of its own.
    let other_middle = in_front_of(&last);
    let other = in_front_of(&other_middle);
    build(&other).assert_all_remote_hits();

    // Without its backing caches, the first proxy still has the build.
    drop((middle, last));
    build(&first).assert_all_remote_hits();
}
