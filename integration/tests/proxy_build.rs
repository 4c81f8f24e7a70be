//! Bazel builds through proxies.
#![cfg(test)]

use gorego_integration::{
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
