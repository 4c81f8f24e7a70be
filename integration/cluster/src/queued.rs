//! The memory of a queued action.

use gorego_integration::{
    cluster::Node,
    executor::{Executor, TestAction, request},
};
use reapi::v2::Digest;
use tokio::task::JoinSet;

use crate::{
    report::{Aim, Unit, print},
    resident,
};

/// The clients that queue actions at the same time.
const CLIENTS: u32 = 16;

/// Measures a real node whose only slot is occupied. The clients do not wait for their actions.
pub(crate) async fn measure(actions: u32) {
    let settings = [
        "execution.concurrency=1",
        "execution.queue_size=1000000",
        "execution.abandon_after=1h",
    ];
    let node = Node::start("a", "", &settings).await;
    let occupied = TestAction::script("sleep 3600");
    let occupied = node.executor.start(&occupied).await;
    // Memory that calls need once is not counted.
    let warm = upload(&node.executor, 0, actions / 10).await;
    queue(&node.executor, warm).await;
    let actions = upload(&node.executor, actions, actions).await;
    let count = actions.len() as u64;
    let before = resident(node.server.id());
    queue(&node.executor, actions).await;
    let grown = resident(node.server.id()).saturating_sub(before);
    drop(occupied);
    let each = u32::try_from(grown / count).unwrap_or(u32::MAX);
    print(
        "memory of a queued action",
        Aim::AtMost(1024.0, Unit::Bytes),
        each.into(),
        Unit::Bytes,
        &format!("{count} actions with their jobs; resident memory of the process"),
    );
}

/// Uploads actions, the first of which has the number `from`.
async fn upload(executor: &Executor, from: u32, count: u32) -> Vec<Digest> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let executor = executor.clone();
        clients.spawn(async move {
            let mut digests = Vec::new();
            for number in (client..count).step_by(CLIENTS as usize) {
                let action = TestAction::script(&format!("echo {}", from + number));
                digests.push(executor.upload(&action).await);
            }
            digests
        });
    }
    clients.join_all().await.concat()
}

async fn queue(executor: &Executor, actions: Vec<Digest>) {
    let mut clients = JoinSet::new();
    for part in actions.chunks(actions.len().div_ceil(CLIENTS as usize).max(1)) {
        let (executor, part) = (executor.clone(), part.to_vec());
        clients.spawn(async move {
            for digest in part {
                let messages = executor.begin(request(&digest)).await;
                let mut messages = messages.expect("the action is accepted");
                let first = messages.next().await.expect("the action is queued");
                assert!(first.is_some_and(|operation| !operation.done));
                drop(messages);
                // A connection whose calls are all cancelled is closed.
                let answered = executor.client.find_missing(Vec::new()).await;
                answered.expect("the server answers");
            }
        });
    }
    clients.join_all().await;
}
