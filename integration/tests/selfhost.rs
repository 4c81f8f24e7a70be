//! Tests that gorego caches builds of this project.
#![cfg(test)]

use gorego_integration::{
    lock::Lock,
    selfhost::{Cache, Project},
    server::Server,
};

#[test]
fn a_second_build_of_this_project_hits_the_cache() {
    let _lock = Lock::bazel();
    let project = Project::default();
    let server = Server::start(&[]);
    let address = server.grpc_url();
    let first = project.build(Cache::Remote(&address));
    assert_eq!(first.remote_hits(), 0, "an empty cache: {first}");

    let second = project.build(Cache::Remote(&address));
    let (hits, cacheable) = (second.remote_hits(), second.cacheable());
    eprintln!("first: {first}\nsecond: {second}");
    assert!(cacheable > 100, "too few actions: {second}");
    assert!(
        hits * 100 >= cacheable * 99,
        "{hits} of {cacheable} actions came from the cache: {second}"
    );
}
