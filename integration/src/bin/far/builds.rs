//! Measures builds that hit every action.

use std::time::Instant;

use gorego_integration::{bazel::Checkout, lock::Lock, server::Server, workspace};

use crate::{
    Args,
    report::{Report, Times},
};

pub(crate) fn measure(args: &Args, report: &mut Report) {
    let _lock = Lock::bazel();
    let backing = Server::start(&[]);
    let link = args.link(backing.address());
    let proxy = Server::in_front_of(&link.grpc_url(), &[]);
    let local = Server::start(&[]);
    let mut times = <(Times, Times)>::default();
    for round in 0..=args.rounds {
        for (server, times) in [(&local, &mut times.0), (&proxy, &mut times.1)] {
            let checkout = Checkout::new(workspace::write_mixed);
            let arguments = ["test", "//...", "--remote_download_all"];
            let started = Instant::now();
            let build = checkout.bazel(&server.grpc_url(), &[], &arguments);
            let took = started.elapsed();
            // The first build fills the cache.
            if round > 0 {
                build.assert_all_remote_hits();
                times.push(took);
            }
        }
    }
    report.add("build of 200 actions that hits", "local only", times);
}
