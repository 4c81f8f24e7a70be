//! Measures a cluster on this machine: sleeping actions, which need no processor, through one of its nodes.
#![allow(
    clippy::expect_used,
    reason = "a measurement that cannot be made ends with the reason"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use gorego_integration::{
    cluster::{self, Node},
    executor::{Executor, TestAction, succeeded},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// Runs sleeping actions through one node of a cluster, and prints how long they took beside the ideal.
#[derive(Debug, Parser)]
#[command(name = "cluster")]
struct Args {
    /// The actions that each of the three nodes runs at once.
    #[arg(long, default_value_t = 2)]
    slots: u32,
    /// The number of actions.
    #[arg(long, default_value_t = 120)]
    actions: u32,
    /// The actions that the client has queued or running.
    #[arg(long, default_value_t = 40)]
    jobs: usize,
    /// The time that each action sleeps, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Kills a node after half of the actions.
    #[arg(long)]
    kill: bool,
}

/// The number of nodes.
const NODES: u32 = 3;

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let slots = format!("execution.concurrency={}", args.slots);
    let [entry, other, victim] = cluster::start::<3>(&[&slots]).await;
    // The first action of a node is slower than the others.
    let warm = Run {
        actions: NODES * args.slots,
        ..Run::of(&args, "warm")
    };
    warm.run(&entry, None).await;
    let run = Run::of(&args, "measured");
    let (victim, kept) = if args.kill {
        (Some(victim), None)
    } else {
        (None, Some(victim))
    };
    let waits = run.run(&entry, victim).await;
    drop((other, kept));
    report(&args, &waits);
}

/// Actions to run.
struct Run {
    actions: u32,
    jobs: usize,
    seconds: f64,
    /// Makes the actions differ from those of other runs.
    name: &'static str,
}

/// The measured times.
struct Times {
    total: Duration,
    /// From the request to the answer, beyond the sleep.
    waits: Vec<Duration>,
}

impl Run {
    fn of(args: &Args, name: &'static str) -> Self {
        Self {
            actions: args.actions,
            jobs: args.jobs,
            seconds: args.seconds,
            name,
        }
    }

    async fn run(&self, entry: &Node, mut victim: Option<Node>) -> Times {
        let jobs = Arc::new(Semaphore::new(self.jobs));
        let (mut running, mut waits) = (JoinSet::new(), Vec::new());
        let start = Instant::now();
        for number in 0..self.actions {
            let permit = Arc::clone(&jobs).acquire_owned().await;
            let permit = permit.expect("the semaphore stays open");
            let script = format!("sleep {}; echo {} {number}", self.seconds, self.name);
            let executor = entry.executor.clone();
            running.spawn(async move {
                let wait = execute(&executor, &script).await;
                drop(permit);
                wait
            });
            if number == self.actions / 2
                && let Some(mut node) = victim.take()
            {
                node.server.kill();
            }
        }
        while let Some(wait) = running.join_next().await {
            let took = wait.expect("every action has its own result");
            waits.push(took.saturating_sub(Duration::from_secs_f64(self.seconds)));
        }
        waits.sort_unstable();
        let total = start.elapsed();
        Times { total, waits }
    }
}

/// Runs a script that prints its argument. Returns the time from the request to the answer.
async fn execute(executor: &Executor, script: &str) -> Duration {
    let action = TestAction::script(script);
    let digest = executor.upload(&action).await;
    let start = Instant::now();
    let request = gorego_integration::executor::request(&digest);
    let messages = executor.begin(request).await;
    let response = messages.expect("the action is accepted").response().await;
    let took = start.elapsed();
    let result = succeeded(response);
    let printed = executor.stdout(&result).await;
    let (_, expected) = script
        .rsplit_once("echo ")
        .expect("a script of this program");
    assert_eq!(printed.trim(), expected, "the result of another action");
    took
}

fn report(args: &Args, times: &Times) {
    let rounds = f64::from(args.actions) / f64::from(NODES * args.slots);
    let ideal = rounds.ceil() * args.seconds;
    let total = times.total.as_secs_f64();
    let ms = |wait: Option<&Duration>| wait.map_or(0.0, |wait| wait.as_secs_f64() * 1000.0);
    let middle = times.waits.get(times.waits.len() / 2);
    println!(
        "{NODES} nodes x {} slots, {} actions of {} s, {} jobs{}",
        args.slots,
        args.actions,
        args.seconds,
        args.jobs,
        if args.kill { ", one node killed" } else { "" }
    );
    println!(
        "time {total:.1} s, ideal {ideal:.1} s, ratio {:.3}",
        total / ideal
    );
    println!(
        "wait p50 {:.0} ms, worst {:.0} ms",
        ms(middle),
        ms(times.waits.last())
    );
}
