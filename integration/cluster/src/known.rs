//! The time until real nodes know each other.

use std::time::Instant;

use gorego_integration::cluster::Node;
use tokio::task::JoinSet;

use crate::report::{Aim, Unit, print};

/// The nodes besides the one that they join.
const OTHERS: [&str; 9] = ["b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// Starts ten nodes at once.
pub(crate) async fn measure() {
    let first = Node::start("a", "", &[]).await;
    let mut starting = JoinSet::new();
    for name in OTHERS {
        let join = first.mesh.to_string();
        starting.spawn(async move {
            let begin = Instant::now();
            (begin, Node::start(name, &join, &[]).await)
        });
    }
    let (begins, mut nodes): (Vec<_>, Vec<_>) = starting.join_all().await.into_iter().unzip();
    let last = begins.iter().max().map(Instant::elapsed);
    let started = last.unwrap_or_default();
    nodes.push(first);
    let names: Vec<_> = std::iter::once("a").chain(OTHERS).collect();
    for node in &nodes {
        node.wait_for_members(&names).await;
    }
    let took = begins.iter().max().map(Instant::elapsed);
    let took = took.map_or(f64::INFINITY, |took| took.as_secs_f64());
    let started = started.as_secs_f64();
    let remark = format!("since the last began to start; all listened after {started:.2} s");
    let aim = Aim::Below(1.0, Unit::Seconds);
    print(
        "until 10 real nodes know each other",
        aim,
        took,
        Unit::Seconds,
        &remark,
    );
}
