//! Actions of one entry node on three real nodes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gorego_integration::{
    cluster::{self, Node},
    executor::{Executor, TestAction, request, succeeded},
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    Args,
    report::{Aim, Unit, print},
};

/// The number of nodes.
const NODES: u32 = 3;

/// Sleeping actions of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    slots: u32,
    actions: u32,
    jobs: usize,
    seconds: f64,
    /// Makes the actions differ from those of other runs.
    name: &'static str,
}

/// The measured times.
struct Times {
    total: Duration,
    /// The longest time from a request to its answer, beyond the sleep.
    worst: Duration,
    /// The actions that were lost, answered twice, or have a wrong result.
    wrong: u32,
}

/// Measures a cluster whose third node is killed after half of the actions if `kills` is set.
pub(crate) async fn measure(load: &Load, kills: bool) {
    let slots = format!("execution.concurrency={}", load.slots);
    let [entry, other, third] = cluster::start::<3>(&[&slots]).await;
    // The first action of a node is slower than the others.
    let warm = Load {
        actions: NODES * load.slots,
        name: "warm",
        ..*load
    };
    warm.run(&entry, None).await;
    let (victim, kept) = if kills {
        (Some(third), None)
    } else {
        (None, Some(third))
    };
    let times = load.run(&entry, victim).await;
    drop((other, kept));
    load.print(&times, kills);
}

impl Load {
    pub(crate) fn of(args: &Args) -> Self {
        let (actions, jobs) = if args.full {
            (600, 200)
        } else {
            (args.actions, args.jobs)
        };
        Self {
            slots: args.slots,
            actions,
            jobs,
            seconds: args.seconds,
            name: "measured",
        }
    }

    async fn run(&self, entry: &Node, mut victim: Option<Node>) -> Times {
        let jobs = Arc::new(Semaphore::new(self.jobs));
        let (mut running, mut worst, mut wrong) = (JoinSet::new(), Duration::ZERO, 0);
        let start = Instant::now();
        for number in 0..self.actions {
            let permit = Arc::clone(&jobs).acquire_owned().await;
            let permit = permit.expect("the semaphore stays open");
            let script = format!("sleep {}; echo {} {number}", self.seconds, self.name);
            let executor = entry.executor.clone();
            running.spawn(async move {
                let took = execute(&executor, &script).await;
                drop(permit);
                took
            });
            if number == self.actions / 2
                && let Some(mut node) = victim.take()
            {
                node.server.kill();
            }
        }
        while let Some(took) = running.join_next().await {
            // The task of an action without exactly one right answer has panicked.
            let Ok(took) = took else {
                wrong += 1;
                continue;
            };
            worst = worst.max(took.saturating_sub(Duration::from_secs_f64(self.seconds)));
        }
        let total = start.elapsed();
        Times {
            total,
            worst,
            wrong,
        }
    }

    fn print(&self, times: &Times, kills: bool) {
        let rounds = f64::from(self.actions) / f64::from(NODES * self.slots);
        let ideal = rounds * self.seconds;
        let total = times.total.as_secs_f64();
        let what = format!(
            "{NODES} × {} real slots, {} actions of {} s, {} jobs",
            self.slots, self.actions, self.seconds, self.jobs
        );
        let worst = times.worst.as_secs_f64();
        let remark = format!("{total:.1} s, ideal {ideal:.1} s, worst wait {worst:.1} s");
        if kills {
            let what = format!("{what}, one node killed: lost, twice or wrong");
            let aim = Aim::AtMost(0.0, Unit::Actions);
            print(&what, aim, times.wrong.into(), Unit::Actions, &remark);
        } else {
            assert_eq!(times.wrong, 0, "a result is missing or wrong");
            let what = format!("{what}: time beside the ideal");
            let aim = Aim::AtMost(1.05, Unit::Ratio);
            print(&what, aim, total / ideal, Unit::Ratio, &remark);
        }
    }
}

/// Runs a script that prints its argument, and checks the result. Returns the time from the request to the answer.
async fn execute(executor: &Executor, script: &str) -> Duration {
    let action = TestAction::script(script);
    let digest = executor.upload(&action).await;
    let start = Instant::now();
    let messages = executor.begin(request(&digest)).await;
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
