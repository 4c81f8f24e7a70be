//! The memory of a queued action.

use std::{ops::Range, time::Duration};

use gorego_integration::{
    client::in_build,
    cluster::Node,
    executor::{Executor, TestAction, request},
};
use reapi::v2::{Digest, ExecuteRequest};
use tokio::{task::JoinSet, time::sleep};
use tonic::Request;

use crate::{
    report::{Aim, Unit, print},
    resident,
};

/// The clients that queue actions at the same time.
const CLIENTS: u32 = 16;
/// The time after which the allocator has returned unused memory to the system.
const SETTLED: Duration = Duration::from_secs(15);

/// A kind of action, as a function of its number.
#[derive(Clone, Copy)]
struct Kind {
    action: fn(u32) -> TestAction,
    request: fn(&Digest, u32) -> Request<ExecuteRequest>,
}

/// Measures real nodes whose only slot is occupied. The clients do not wait for their actions.
pub(crate) async fn measure(actions: u32) {
    let least = Kind {
        action: |number| TestAction::script(&format!("echo {number}")),
        request: |digest, _| Request::new(request(digest)),
    };
    let aim = Aim::AtMost(1024.0, Unit::Bytes);
    measure_kind("a queued action", aim, actions, least).await;
    let like_bazels = Kind {
        action: like_bazels,
        request: |digest, number| {
            let build = "4f3d1b6a-8f0e-4c1c-9a55-0a3c5d0f6f11";
            in_build(
                build,
                &format!("//src/package_{number}:library"),
                request(digest),
            )
        },
    };
    // All inputs are uploaded with each action.
    measure_kind("one like Bazel's", Aim::None, actions / 5, like_bazels).await;
}

/// An action by its number, with the arguments of a compiler, and with 100 inputs that all such actions have and one of
/// its own.
fn like_bazels(number: u32) -> TestAction {
    let argument = |at| format!("-Ibazel-out/k8-fastbuild/bin/external/library_{at}/include");
    let arguments: Vec<_> = (0..60).map(argument).collect();
    let arguments = arguments.iter().map(String::as_str);
    let source = format!("src/package_{number}/file.cc");
    let arguments: Vec<_> = ["/bin/true", "-c", &source]
        .into_iter()
        .chain(arguments)
        .collect();
    let mut action = TestAction::of(&arguments)
        .variable("PATH", "/bin:/usr/bin:/usr/local/bin")
        .output(&format!("bazel-out/k8-fastbuild/bin/{source}.o"))
        .input(&source, number.to_string());
    for at in 0..100 {
        let path = format!("external/library_{}/include/header_{at}.h", at % 10);
        action = action.input(&path, at.to_string());
    }
    action
}

async fn measure_kind(what: &str, aim: Aim, actions: u32, kind: Kind) {
    let settings = [
        "execution.concurrency=1",
        "execution.queue_size=1000000",
        "execution.abandon_after=1h",
    ];
    let node = Node::start("a", "", &settings).await;
    let occupied = TestAction::script("sleep 3600");
    let occupied = node.executor.start(&occupied).await;
    // Memory that calls need once is not counted.
    let warm = upload(&node.executor, 0..actions / 10, kind).await;
    queue(&node.executor, warm).await;
    let queued = upload(&node.executor, actions..2 * actions, kind).await;
    let before = settled(&node).await;
    let names = queue(&node.executor, queued).await;
    let grown = settled(&node).await.saturating_sub(before);
    print_each(&format!("memory of {what}"), aim, grown, actions);
    cancel(&node.executor, names).await;
    let left = settled(&node).await.saturating_sub(before);
    print_each("memory left after its end", Aim::None, left, actions);
    drop(occupied);
}

/// Returns the resident memory of a node without what its allocator is about to return, in bytes.
async fn settled(node: &Node) -> u64 {
    sleep(SETTLED).await;
    resident(node.server.id())
}

fn print_each(what: &str, aim: Aim, bytes: u64, count: u32) {
    let each = u32::try_from(bytes / u64::from(count)).unwrap_or(u32::MAX);
    let remark = format!("{count} actions with their jobs; resident memory of the process");
    print(what, aim, each.into(), Unit::Bytes, &remark);
}

/// Uploads the actions of these numbers. Returns the requests for them.
async fn upload(
    executor: &Executor,
    numbers: Range<u32>,
    kind: Kind,
) -> Vec<Request<ExecuteRequest>> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (executor, numbers) = (executor.clone(), numbers.clone());
        clients.spawn(async move {
            let mut uploaded = Vec::new();
            for number in numbers.skip(client as usize).step_by(CLIENTS as usize) {
                let digest = executor.upload(&(kind.action)(number)).await;
                uploaded.push((kind.request)(&digest, number));
            }
            uploaded
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

/// Queues actions. Returns the names of their operations.
async fn queue(executor: &Executor, actions: Vec<Request<ExecuteRequest>>) -> Vec<String> {
    let mut clients = JoinSet::new();
    for part in parts(actions) {
        let executor = executor.clone();
        clients.spawn(async move {
            let mut names = Vec::new();
            for request in part {
                let messages = executor.begin(request).await;
                let mut messages = messages.expect("the action is accepted");
                let first = messages.next().await.expect("the action is queued");
                assert!(first.is_some_and(|operation| !operation.done));
                names.push(messages.name.clone());
                drop(messages);
                // A connection whose calls are all cancelled is closed.
                let answered = executor.client.find_missing(Vec::new()).await;
                answered.expect("the server answers");
            }
            names
        });
    }
    clients.join_all().await.concat()
}

async fn cancel(executor: &Executor, operations: Vec<String>) {
    let mut clients = JoinSet::new();
    for part in parts(operations) {
        let executor = executor.clone();
        clients.spawn(async move {
            for name in part {
                let cancelled = executor.cancel(&name).await;
                cancelled.expect("the operation is known");
            }
        });
    }
    clients.join_all().await;
}

/// Returns a part for each client.
fn parts<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
    let each = all.len().div_ceil(CLIENTS as usize).max(1);
    let mut parts = Vec::new();
    while !all.is_empty() {
        parts.push(all.split_off(all.len().saturating_sub(each)));
    }
    parts
}
