//! Builds by Bazel whose actions gorego executes.
#![cfg(test)]

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
};

use gorego_integration::{
    bazel::{BazelServer, Build},
    lock::Lock,
    metrics::Metrics,
    project,
    server::Server,
    workspace,
};
use tokio::runtime::Runtime;

/// Actions that Bazel gives up are killed soon.
const EXECUTES: [&str; 2] = ["execution.enabled=true", "execution.abandon_after=1s"];

/// The settings of an executor with persistent workers: one for each compilation, in case that none is reused.
const HAS_WORKERS: [&str; 5] = [
    "execution.enabled=true",
    "execution.concurrency=2",
    "execution.persistent_workers.enabled=true",
    "execution.persistent_workers.max=6",
    "telemetry.metrics_addr=127.0.0.1:0",
];

/// The stable status of all builds.
const STATUS: &str = "--workspace_status_command=echo STABLE_NAME gorego";

/// All targets that end.
const ALL: [&str; 2] = ["//...", "//kinds:stamped"];

/// A part of them with all kinds of actions, but few of each.
const PART: [&str; 4] = [
    "//java/...",
    "//kinds/...",
    "//kinds:stamped",
    "//tests/...",
];

type Outputs = BTreeMap<String, String>;

/// Returns the hash of each output by its path. Those of tests contain durations.
fn outputs(build: &Build) -> Outputs {
    let spawns = build.spawns.iter();
    let built = spawns.filter(|spawn| spawn.mnemonic != "TestRunner");
    let outputs = built.flat_map(|spawn| &spawn.actual_outputs);
    let outputs = outputs.map(|output| (output.path.clone(), output.digest.hash.clone()));
    outputs.collect()
}

/// Checks that `runner` ran every action.
fn assert_ran(build: &Build, runner: &str) {
    let elsewhere = build.spawns.iter().filter(|spawn| spawn.runner != runner);
    let elsewhere: Vec<_> = elsewhere.collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}\n{}", build.console);
}

/// A workspace, an executor, and Bazel.
struct Bench {
    executor: Server,
    cache: Server,
    bazel: BazelServer,
}

impl Bench {
    fn new() -> Self {
        Self {
            executor: Server::start_in_root(&EXECUTES),
            cache: Server::start(&[]),
            bazel: BazelServer::new(workspace::write_large),
        }
    }

    /// Builds and tests from nothing, with the executor.
    fn test(&mut self, options: &[&str], targets: &[&str]) -> Build {
        self.run("test", options, targets)
    }

    fn run(&mut self, command: &str, options: &[&str], targets: &[&str]) -> Build {
        self.bazel.clean();
        let url = self.executor.grpc_url();
        let executor = format!("--remote_executor={url}");
        let arguments = [&[command, &executor, STATUS][..], options, targets].concat();
        self.bazel.build(&url, &arguments)
    }

    /// Builds and tests everything from nothing without the executor.
    fn test_locally(&mut self) -> Build {
        self.bazel.clean();
        let arguments = [&["test", STATUS][..], &ALL].concat();
        self.bazel.build(&self.cache.grpc_url(), &arguments)
    }
}

/// Checks that a part of the workspace is executed again with these options, and has the outputs that it had.
fn assert_rebuilds(bench: &mut Bench, options: &[&str], expected: &Outputs) {
    let options = [options, &["--noremote_accept_cached"]].concat();
    let build = bench.test(&options, &PART);
    assert_ran(&build, "remote");
    let outputs = outputs(&build);
    assert!(outputs.len() > 20, "{outputs:?}");
    for output in &outputs {
        assert_eq!(expected.get(output.0), Some(output.1), "{}", output.0);
    }
}

/// Checks that the faster of two executions counts, and the other one is killed, wherever it is.
fn assert_dynamic(bench: &mut Bench) {
    let options = [
        "--internal_spawn_scheduler",
        "--spawn_strategy=dynamic",
        "--dynamic_local_strategy=sandboxed",
        "--dynamic_remote_strategy=remote",
        "--dynamic_local_execution_delay=0",
    ];
    let targets = [
        "//dynamic:ends_remotely",
        "//dynamic:ends_locally",
        "//dynamic:ends_locally_too",
    ];
    let build = bench.run("build", &options, &targets);
    for spawn in &build.spawns {
        let is_remote = spawn.target_label == targets[0];
        assert_eq!(spawn.runner == "remote", is_remote, "{spawn:?}");
    }
    assert_eq!(build.spawns.len(), targets.len(), "{}", build.console);
}

/// Checks that Bazel shows the log of a test that is killed at the end of its time.
fn assert_timeout(bench: &mut Bench) {
    let url = bench.executor.grpc_url();
    let executor = format!("--remote_executor={url}");
    let arguments = [
        "test",
        &executor,
        "--spawn_strategy=remote",
        "--test_timeout=5",
        "--test_output=errors",
        "//tests:hangs",
    ];
    let build = bench.bazel.fails(3, &url, &arguments);
    for text in ["TIMEOUT: //tests:hangs", "said before the end"] {
        assert!(build.console.contains(text), "{}", build.console);
    }
    assert_ran(&build, "remote");
}

#[test]
fn builds_whose_actions_run_here_have_the_outputs_of_a_local_build() {
    let _lock = Lock::bazel();
    let mut bench = Bench::new();
    let remote = bench.test(&["--spawn_strategy=remote", "--jobs=200"], &ALL);
    assert_ran(&remote, "remote");
    assert!(remote.spawns.len() > 480, "{}", remote.spawns.len());
    let shards = "Stats over 3 runs";
    assert!(remote.console.contains(shards), "{}", remote.console);

    let minimal = ["--spawn_strategy=remote", "--remote_download_minimal"];
    bench.test(&minimal, &["//..."]).assert_all_remote_hits();

    let local = bench.test_locally();
    let expected = outputs(&local);
    assert_eq!(outputs(&remote), expected);

    assert_timeout(&mut bench);
    assert_dynamic(&mut bench);
    // The slots are free again.
    let keepalive = "--experimental_remote_execution_keepalive";
    let options = ["--spawn_strategy=remote", keepalive];
    assert_rebuilds(&mut bench, &options, &expected);
    assert_rebuilds(&mut bench, &minimal, &expected);
}

/// Returns the code in the blocks of a section of the README.
fn blocks_of(section: &str) -> Vec<String> {
    let readme = fs::read_to_string(project::root().join("README.md")).unwrap();
    let (_, text) = readme.split_once(&format!("\n### {section}\n")).unwrap();
    let (text, _) = text.split_once("\n### ").unwrap();
    let blocks = text.split("\n```").skip(1).step_by(2);
    let code = blocks.map(|block| block.split_once('\n').unwrap().1.to_owned() + "\n");
    code.collect()
}

/// Returns the number of actions that a persistent worker answered, and of those that it did not.
fn requests(server: &Server) -> (Option<u64>, Option<u64>) {
    let metrics = Runtime::new().unwrap();
    let metrics = metrics.block_on(Metrics::of(server.metrics()));
    let requests = |outcome| {
        let name = "gorego_execution_persistent_requests_total";
        metrics.get(&format!("{name}{{outcome=\"{outcome}\"}}"))
    };
    (requests("answered"), requests("failed"))
}

#[test]
fn bazel_builds_with_persistent_workers_by_the_lines_of_the_readme() {
    let _lock = Lock::bazel();
    let blocks = blocks_of("Persistent workers");
    let [options, json] = blocks.as_slice() else {
        panic!("{blocks:?}");
    };
    let executor = Server::start_in_root(&HAS_WORKERS);
    let mut bazel = BazelServer::new(|dir| workspace::write_compiled(dir, json));
    let url = executor.grpc_url();
    let address = format!("--remote_executor={url}");
    let build = |bazel: &mut BazelServer| {
        bazel.clean();
        let arguments = [
            "build",
            &address,
            "--spawn_strategy=remote",
            "//compiled/...",
        ];
        let build = bazel.build(&url, &arguments);
        let compilers = build
            .spawns
            .iter()
            .filter(|spawn| spawn.mnemonic == "Compiled");
        assert_eq!(compilers.count(), 6, "{}", build.console);
        assert_ran(&build, "remote");
        outputs(&build)
    };
    let expected = build(&mut bazel);
    assert_eq!(requests(&executor), (Some(0), Some(0)));
    let mut rc = OpenOptions::new();
    let rc = rc.append(true).open(bazel.source().join(".bazelrc"));
    rc.unwrap().write_all(options.as_bytes()).unwrap();
    assert_eq!(build(&mut bazel), expected);
    assert_eq!(requests(&executor), (Some(6), Some(0)));
}
