//! Tests that gorego caches builds of this project, and executes their actions.
#![cfg(test)]

use gorego_integration::{
    lock::Lock,
    selfhost::{Cache, Project},
    server::Server,
};

#[test]
fn a_second_build_of_this_project_hits_the_cache() {
    // Most crates are below it. Most of the time of a build of everything is that of linking each test.
    const PROGRAM: &str = "//cmd/gorego:program";
    let _lock = Lock::bazel();
    let project = Project::default();
    let server = Server::start(&[]);
    let address = server.grpc_url();
    let (first, _) = project.build_target(PROGRAM, Cache::Remote(&address));
    assert_eq!(first.remote_hits(), 0, "an empty cache: {first}");

    let (second, _) = project.build_target(PROGRAM, Cache::Remote(&address));
    let (hits, cacheable) = (second.remote_hits(), second.cacheable());
    eprintln!("first: {first}\nsecond: {second}");
    assert!(cacheable > 100, "too few actions: {second}");
    assert!(
        hits * 100 >= cacheable * 99,
        "{hits} of {cacheable} actions came from the cache: {second}"
    );
}

#[test]
fn a_part_of_this_project_that_is_built_here_has_the_outputs_of_a_local_build() {
    // It has build scripts and procedural macros below it.
    const PART: &str = "//pkg/sandbox";
    let _lock = Lock::bazel();
    let project = Project::default();
    let server = Server::start_in_root(&["execution.enabled=true"]);
    let address = server.grpc_url();
    let (remote, outputs) = project.build_target(PART, Cache::Executor(&address));
    let elsewhere = remote.cacheable() - remote.actions["remote"] - remote.remote_hits();
    assert_eq!(elsewhere, 0, "{remote}");
    assert!(remote.actions["remote"] > 50, "{remote}");

    let (local, expected) = project.build_target(PART, Cache::Machine);
    eprintln!("here: {remote}\nlocally: {local}");
    assert_eq!(outputs, expected);
}
