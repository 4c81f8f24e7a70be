//! The time until real nodes know each other.

use std::time::Instant;

use gorego_integration::cluster::Node;
use tokio::task::JoinSet;

use crate::report::{Aim, Unit, print};

/// The nodes besides the one that they join.
const OTHERS: [&str; 9] = ["b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// Starts ten nodes at once.
pub(crate) async fn measure() {
    let begin = Instant::now();
    let first = Node::start("a", "", &[]).await;
    let mut starting = JoinSet::new();
    for name in OTHERS {
        let join = first.mesh.to_string();
        starting.spawn(async move { Node::start(name, &join, &[]).await });
    }
    let mut nodes = starting.join_all().await;
    let ready = Instant::now();
    nodes.push(first);
    let names: Vec<_> = std::iter::once("a").chain(OTHERS).collect();
    for node in &nodes {
        node.wait_for_members(&names).await;
    }
    let took = ready.elapsed().as_secs_f64();
    let started = ready.duration_since(begin).as_secs_f64();
    let remark = format!("after their processes, which started within {started:.1} s");
    let aim = Aim::Below(1.0, Unit::Seconds);
    print(
        "until 10 real nodes know each other",
        aim,
        took,
        Unit::Seconds,
        &remark,
    );
}
