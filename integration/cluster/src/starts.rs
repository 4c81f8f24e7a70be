//! The time from the end of an action to the start of the next one in its slot.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use gorego_integration::{
    cluster::{self, Node},
    executor::{TestAction, succeeded},
    web,
};
use reapi::v2::ExecutedActionMetadata;
use tokio::task::JoinSet;

use crate::report::{Aim, Unit, ms, print, print_percentiles};

/// The number of actions.
const ACTIONS: u32 = 600;
/// The lines of the histogram of the times from the claim of a slot to the start of the action.
const BUCKET: &str = "gorego_cluster_start_seconds_bucket{le=\"";

/// The times of one action at its node.
struct Span {
    /// The start of the attempt.
    attempt: SystemTime,
    /// The start of the command.
    command: SystemTime,
    /// The end of the attempt.
    end: SystemTime,
}

/// Measures three real nodes with one slot each.
pub(crate) async fn measure() {
    let nodes = cluster::start::<3>(&["execution.concurrency=1"]).await;
    let [entry, takers @ ..] = &nodes;
    let mut running = JoinSet::new();
    for number in 0..ACTIONS {
        let executor = entry.executor.clone();
        let action = TestAction::script(&format!("sleep 0.05; echo {number}"));
        running.spawn(async move { succeeded(executor.execute(&action).await) });
    }
    let mut slots = BTreeMap::<String, Vec<Span>>::new();
    while let Some(result) = running.join_next().await {
        let metadata = result.expect("a result").execution_metadata;
        let metadata = metadata.expect("a result has metadata");
        let slot = slots.entry(metadata.worker.clone()).or_default();
        slot.push(Span::of(&metadata));
    }
    slots.remove(&entry.name);
    assert_eq!(slots.len(), takers.len(), "each node has run some actions");
    let (mut attempts, mut commands, mut overlaps) = (Vec::new(), Vec::new(), 0_u32);
    for mut slot in slots.into_values() {
        slot.sort_by_key(|span| span.attempt);
        for (last, next) in slot.iter().zip(slot.iter().skip(1)) {
            let since = |time: SystemTime| time.duration_since(last.end);
            match since(next.attempt) {
                Ok(time) => attempts.push(time),
                Err(_) => overlaps += 1,
            }
            commands.extend(since(next.command));
        }
    }
    let aims = [(50, 2.0), (99, 10.0)];
    let aims = aims.map(|(percent, most)| (percent, Aim::AtMost(most, Unit::Milliseconds)));
    let what = "from a free slot to the start of a granted action";
    print_percentiles(what, aims.map(|(_, aim)| aim), &mut attempts);
    let what = "attempts that began before the last one in their slot had ended";
    let aim = Aim::AtMost(0.0, Unit::Actions);
    let remark = "left out above";
    print(what, aim, overlaps.into(), Unit::Actions, remark);
    let what = "from a free slot to the start of the granted action's command";
    print_percentiles(what, [Aim::None, Aim::None], &mut commands);
    let times = buckets(takers).await;
    for (percent, aim) in aims {
        let what = format!("from the claim of a slot to the start, at most: p{percent}");
        let most = ms(percentile(&times, percent));
        print(&what, aim, most, Unit::Milliseconds, "by the histogram");
    }
}

impl Span {
    fn of(metadata: &ExecutedActionMetadata) -> Self {
        let time = |time: Option<prost_types::Timestamp>| {
            let time = time.expect("the time is known");
            SystemTime::try_from(time).expect("a time of this century")
        };
        Self {
            attempt: time(metadata.worker_start_timestamp),
            command: time(metadata.execution_start_timestamp),
            end: time(metadata.worker_completed_timestamp),
        }
    }
}

/// Returns the numbers of starts up to each bound, of all nodes together.
async fn buckets(nodes: &[Node]) -> BTreeMap<Duration, u64> {
    let mut buckets = BTreeMap::new();
    for node in nodes {
        let metrics = web::get(node.server.metrics(), "/metrics").await;
        for line in metrics.content.lines() {
            let Some((bound, rest)) = line
                .strip_prefix(BUCKET)
                .and_then(|rest| rest.split_once("\"} "))
            else {
                continue;
            };
            let count = rest.split(' ').next().and_then(|count| count.parse().ok());
            let count: u64 = count.expect("a number");
            let bound: f64 = bound.parse().expect("a bound in seconds");
            let bound = Duration::try_from_secs_f64(bound).unwrap_or(Duration::MAX);
            *buckets.entry(bound).or_default() += count;
        }
    }
    buckets
}

/// Returns the bound of the bucket with a percentile.
fn percentile(buckets: &BTreeMap<Duration, u64>, percent: u64) -> Duration {
    let all = buckets.values().max().copied().unwrap_or_default();
    let mut reached = buckets
        .iter()
        .filter(|(_, count)| **count * 100 >= all * percent);
    let bound = reached.next().map(|(bound, _)| *bound);
    bound.unwrap_or_default()
}
