//! The time until the actions of a lost node start at others.

use std::time::{Duration, SystemTime};

use gorego_integration::{
    cluster::{self, Node},
    executor::{Messages, TestAction, succeeded},
};
use rustix::process::Signal;

use crate::report::{Aim, Unit, print};

/// The number of actions, for which the slots of two nodes suffice.
const ACTIONS: u32 = 4;

/// The number of runs of each case.
const RUNS: usize = 5;

/// Measures three real nodes, one of which ends or stops. The host of a stopped process still accepts connections.
pub(crate) async fn measure() {
    let cases = [
        ("a killed node's", Signal::KILL, 1.0),
        ("a stopped node's", Signal::STOP, 5.0),
    ];
    for (whose, signal, aim) in cases {
        let (mut took, mut moved) = (Duration::ZERO, 0);
        for _ in 0..RUNS {
            let (time, actions) = lose(signal).await;
            (took, moved) = (took.max(time), moved + actions);
        }
        let what = format!("until {whose} actions run elsewhere");
        let aim = Aim::AtMost(aim, Unit::Seconds);
        let remark = format!("the longest of {RUNS} runs, {moved} actions");
        print(&what, aim, took.as_secs_f64(), Unit::Seconds, &remark);
    }
}

/// Returns the time until the last action of the lost node started elsewhere, and the number of these actions.
async fn lose(signal: Signal) -> (Duration, usize) {
    let nodes = cluster::start::<3>(&["execution.concurrency=2"]).await;
    let [entry, ..] = &nodes;
    let mut actions = Vec::new();
    for number in 0..ACTIONS {
        let action = TestAction::script(&format!("sleep 3; echo {number}"));
        actions.push(entry.executor.start(&action).await);
    }
    let victim = victim(&nodes).await;
    victim.server.signal(signal);
    let lost = SystemTime::now();
    let mut starts = Vec::new();
    for action in &mut actions {
        let start = start_of(action, &victim.name).await;
        starts.extend(start.duration_since(lost).ok());
    }
    let last = starts.iter().max().copied();
    (last.expect("a lost node had actions"), starts.len())
}

/// Waits until all actions run. Returns a node with some that is not the entry node.
async fn victim(nodes: &[Node; 3]) -> &Node {
    let [entry, others @ ..] = nodes;
    loop {
        let places = entry.places().await;
        if places.len() == ACTIONS as usize {
            let mut others = others.iter();
            let victim = others.find(|node| places.contains(&node.name));
            return victim.expect("the entry node has too few slots");
        }
    }
}

/// Returns the start of the attempt that ended an action.
async fn start_of(action: &mut Messages, victim: &str) -> SystemTime {
    let metadata = succeeded(action.response().await).execution_metadata;
    let metadata = metadata.expect("a result has metadata");
    assert_ne!(metadata.worker, victim, "the node was lost");
    let start = metadata.worker_start_timestamp.expect("a start");
    SystemTime::try_from(start).expect("a time of this century")
}
