//! Measures where a cluster on this machine reads the inputs of actions, over links with a latency.
#![allow(
    clippy::expect_used,
    reason = "a measurement that cannot be made ends with the reason"
)]

mod builds;
mod nodes;
mod report;

use std::{sync::Arc, time::Instant};

use clap::{Parser, ValueEnum};
use gorego_integration::{
    content::blob,
    executor::{Executor, TestAction, request, succeeded},
    link::{Rate, parse_latency},
};
use reapi::v2::ExecutedActionMetadata;
use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet};

use self::{nodes::Nodes, report::Report};

/// Runs sleeping actions with inputs of their own through one node of three, and prints the time and the traffic that
/// their inputs cost.
#[derive(Clone, Debug, Parser)]
#[command(name = "inputs")]
struct Args {
    /// The places that have the inputs before their actions start.
    #[arg(long, value_enum, default_value_t = Place::Entry)]
    place: Place,
    /// The number of actions.
    #[arg(long, default_value_t = 60)]
    actions: u32,
    /// The input files of each action.
    #[arg(long, default_value_t = 50)]
    files: u32,
    /// The size of each file, in bytes.
    #[arg(long, default_value_t = 65_536)]
    bytes: usize,
    /// The time that each action sleeps, in seconds.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// The actions that each of the three nodes runs at once.
    #[arg(long, default_value_t = 2)]
    slots: u32,
    /// The actions that the client has queued or running.
    #[arg(long, default_value_t = 20)]
    jobs: usize,
    /// The one-way latency between the nodes.
    #[arg(long, default_value = "500us", value_parser = parse_latency)]
    latency: std::time::Duration,
    /// The rate of the link to each node, and to the backing cache, in each direction.
    #[arg(long, default_value = "1Gbit")]
    rate: Rate,
    /// The one-way latency to the backing cache. Without this option, there is no backing cache.
    #[arg(long, value_parser = parse_latency)]
    backing: Option<std::time::Duration>,
    /// A setting of the nodes, `key=value`. May be repeated.
    #[arg(long)]
    set: Vec<String>,
    /// The number of the run. Inputs differ between runs, so that a run with another number finds none of them.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Measures builds by Bazel instead, without added latency. Needs the root with the build clients.
    #[arg(long)]
    builds: bool,
}

/// The places that have the inputs of the actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Place {
    /// The node that the client calls, which received them from the client.
    Entry,
    /// The backing cache only.
    Backing,
    /// One of the other nodes.
    Peer,
    /// All nodes.
    All,
}

fn main() {
    let args = Args::parse();
    let runtime = Runtime::new().expect("a runtime");
    if args.builds {
        builds::measure(&args, runtime.handle());
    } else {
        runtime.block_on(measure(&args));
    }
}

async fn measure(args: &Args) {
    let nodes = Nodes::start(args).await;
    // The first action of a node is slower than the others.
    let warm = Args {
        actions: 6 * args.slots,
        files: 1,
        place: Place::Entry,
        seed: u32::MAX,
        ..args.clone()
    };
    let warm_actions = upload(&warm, &nodes).await;
    run(&warm, &nodes, warm_actions).await;
    let actions = upload(args, &nodes).await;
    let before = nodes.counts().await;
    let report = run(args, &nodes, actions).await;
    println!("{report}");
    println!("{}", nodes.counts().await.since(&before));
}

async fn upload(args: &Args, nodes: &Nodes) -> Vec<TestAction> {
    let actions: Vec<_> = (0..args.actions).map(|n| action(args, n)).collect();
    let places = nodes.places(args.place).await;
    for action in &actions {
        for place in &places {
            place.upload(action).await;
        }
    }
    actions
}

async fn run(args: &Args, nodes: &Nodes, actions: Vec<TestAction>) -> Report {
    let jobs = Arc::new(Semaphore::new(args.jobs));
    let mut running = JoinSet::new();
    let start = Instant::now();
    for action in actions {
        let permit = Arc::clone(&jobs).acquire_owned().await;
        let permit = permit.expect("the semaphore stays open");
        let entry = nodes.entry().clone();
        running.spawn(async move {
            let ended = execute(&entry, &action).await;
            drop(permit);
            ended
        });
    }
    let mut ended = Vec::new();
    while let Some(action) = running.join_next().await {
        ended.push(action.expect("every action succeeds"));
    }
    Report::new(args, start.elapsed(), &ended)
}

/// Returns an action whose inputs no other action has.
fn action(args: &Args, number: u32) -> TestAction {
    let script = format!("sleep {}; : {number} {}", args.seconds, args.seed);
    (0..args.files).fold(TestAction::script(&script), |action, file| {
        let seed = [args.seed, number, file].map(u64::from);
        let seed = (seed[0] << 40) ^ (seed[1] << 20) ^ seed[2];
        action.input(
            &format!("dir{}/file{file}", file % 5),
            blob(seed, args.bytes),
        )
    })
}

async fn execute(entry: &Executor, action: &TestAction) -> ExecutedActionMetadata {
    let (digest, _) = action.blobs();
    let messages = entry.begin(request(&digest)).await;
    let response = messages.expect("the action is accepted").response().await;
    let metadata = succeeded(response).execution_metadata;
    metadata.expect("metadata of the execution")
}
