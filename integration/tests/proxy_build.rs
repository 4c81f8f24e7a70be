//! Bazel builds through proxies.
#![cfg(test)]

use gorego_integration::{
    backing::Backing,
    bazel::{Build, Checkout},
    lock::Lock,
    server::Server,
    workspace,
};

/// A workspace smaller than this would not be worth the name.
const ACTIONS: usize = 200;

fn in_front_of(server: &Server) -> Server {
    Server::in_front_of(&server.grpc_url(), &[])
}

fn build(server: &Server) -> Build {
    let checkout = Checkout::new(workspace::write_mixed);
    let arguments = ["test", "//...", "--remote_download_all"];
    checkout.bazel(&server.grpc_url(), &[], &arguments)
}

/// What Bazel built through one proxy it gets through another: that build.
fn shared(backing: &Backing) -> Build {
    let _lock = Lock::bazel();
    let here = Server::in_front_of(&backing.grpc_url(), &[]);
    assert!(build(&here).cacheable().count() >= ACTIONS);
    let there = Server::in_front_of(&backing.grpc_url(), &[]);
    build(&there)
}

#[test]
fn machines_share_builds_in_front_of_bazel_remote() {
    shared(&Backing::bazel_remote()).assert_all_remote_hits();
}

#[test]
fn machines_share_builds_in_front_of_casd() {
    let built = shared(&Backing::casd());
    // It holds each directory of a tree for an output, which Bazel does not upload, and says of
    // such a result that it is not there.
    let missed = built.cacheable().filter(|spawn| !spawn.is_remote_hit());
    let missed: Vec<_> = missed.map(|spawn| spawn.target_label.as_str()).collect();
    assert_eq!(missed, ["//:tree"], "{}", built.console);
}

#[test]
fn what_was_built_through_a_chain_of_three_is_at_its_end_and_on_its_way() {
    let _lock = Lock::bazel();
    let last = Server::start(&[]);
    let middle = in_front_of(&last);
    let first = in_front_of(&middle);
    let built = build(&first);
    assert!(built.cacheable().count() >= ACTIONS);

    // Another machine, that nothing was built through.
    let other_middle = in_front_of(&last);
    let other = in_front_of(&other_middle);
    build(&other).assert_all_remote_hits();

    // With everything behind it gone, the first has what was built through it.
    drop((middle, last));
    build(&first).assert_all_remote_hits();
}
