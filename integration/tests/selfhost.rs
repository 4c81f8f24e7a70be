//! This project's builds are among those that gorego caches.
#![cfg(test)]

use gorego_integration::{
    lock::Lock,
    selfhost::{Cache, Project},
    server::Server,
};

#[test]
fn a_second_machine_gets_this_project_from_gorego() {
    let _lock = Lock::bazel();
    let project = Project::default();
    let server = Server::start(&[]);
    let address = server.grpc_url();
    let first = project.build(Cache::Remote(&address));
    assert_eq!(first.remote_hits(), 0, "an empty cache: {first}");

    let second = project.build(Cache::Remote(&address));
    let (hits, cacheable) = (second.remote_hits(), second.cacheable());
    eprintln!("first: {first}\nsecond: {second}");
    assert!(cacheable > 100, "hardly anything was built: {second}");
    assert!(
        hits * 100 >= cacheable * 99,
        "{hits} of {cacheable} actions came from the cache: {second}"
    );
}
