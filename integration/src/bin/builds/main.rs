//! Measures builds of some 500 actions that gorego executes, in turns with builds in Bazel's own sandbox.
#![allow(
    clippy::expect_used,
    reason = "a measurement that cannot be made ends with the reason"
)]

use std::time::{Duration, Instant};

use clap::Parser;
use gorego_integration::{bazel::BazelServer, lock::Lock, server::Server, workspace};

/// Measures builds by Bazel in its own sandbox and with gorego as the executor, and prints the medians. Needs the root
/// with the build clients.
#[derive(Debug, Parser)]
#[command(name = "builds")]
struct Args {
    /// The number of turns, after one that is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// The number of actions that Bazel has queued or running.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    jobs: u64,
}

/// A way to run the actions of a build.
struct Side {
    name: &'static str,
    /// The executor, if it is not Bazel itself.
    server: Option<Server>,
    times: Vec<Duration>,
}

impl Side {
    fn new(name: &'static str, server: Option<Server>) -> Self {
        Self {
            name,
            server,
            times: Vec::new(),
        }
    }

    fn executor(name: &'static str, sandbox: &str) -> Self {
        let settings = ["execution.enabled=true", sandbox];
        Self::new(name, Some(Server::start_in_root(&settings)))
    }

    /// Builds everything anew. Returns the duration.
    fn build(&self, bazel: &mut BazelServer, jobs: u64) -> Duration {
        let url = self.server.as_ref().map(Server::grpc_url);
        let url = url.unwrap_or_default();
        let jobs = format!("--jobs={jobs}");
        let executor = format!("--remote_executor={url}");
        let (strategy, runner) = if self.server.is_some() {
            ("--spawn_strategy=remote", "remote")
        } else {
            ("--spawn_strategy=linux-sandbox", "linux-sandbox")
        };
        let anew = "--noremote_accept_cached";
        let arguments = ["build", "//...", &jobs, &executor, strategy, anew];
        bazel.clean();
        let start = Instant::now();
        let build = bazel.build(&url, &arguments);
        let took = start.elapsed();
        let elsewhere = build.spawns.iter().find(|spawn| spawn.runner != runner);
        assert!(elsewhere.is_none(), "{elsewhere:?}\n{}", build.console);
        took
    }

    /// Returns the median in seconds, or the larger of the middle two.
    fn median(&self) -> f64 {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let middle = sorted.get(sorted.len() / 2);
        middle.copied().unwrap_or_default().as_secs_f64()
    }
}

fn main() {
    let args = Args::parse();
    let _lock = Lock::bazel();
    let mut bazel = BazelServer::new(workspace::write_large);
    let mut sides = [
        Side::new("linux-sandbox", None),
        Side::executor("gorego, plain", "execution.sandbox.enabled=false"),
        Side::executor("gorego, full", "execution.sandbox.enabled=true"),
    ];
    for round in 0..=args.rounds {
        for side in &mut sides {
            let took = side.build(&mut bazel, args.jobs);
            // The first turn fills the store and warms Bazel.
            if round > 0 {
                side.times.push(took);
            }
        }
    }
    let [local, ..] = &sides;
    let local = local.median();
    for side in &sides {
        let seconds = side.median();
        println!("{}: {seconds:.2} s, {:.2} x", side.name, seconds / local);
    }
}
