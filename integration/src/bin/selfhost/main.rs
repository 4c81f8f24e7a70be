//! Measures builds of this project as on a new machine: without a cache, with gorego, and with Bazel's disk
//! cache.
#![allow(
    clippy::expect_used,
    reason = "a measurement that cannot be made ends with the reason"
)]

use gorego_integration::{
    selfhost::{Build, Cache, Project},
    server::Server,
};
use tempfile::TempDir;

fn main() {
    let project = Project::default();
    let report = |what: &str, build: &Build| println!("{what}: {build}");
    report("no cache", &project.build(Cache::None));

    let server = Server::start(&[]);
    let gorego = server.grpc_url();
    report("gorego, empty", &project.build(Cache::Remote(&gorego)));
    let cached = project.build(Cache::Remote(&gorego));
    report("gorego, filled", &cached);
    println!(
        "of {} cacheable actions {} were remote hits",
        cached.cacheable(),
        cached.remote_hits()
    );

    let disk = TempDir::new().expect("a temporary directory");
    let disk = Cache::Disk(disk.path());
    report("disk cache, empty", &project.build(disk));
    report("disk cache, filled", &project.build(disk));
}
