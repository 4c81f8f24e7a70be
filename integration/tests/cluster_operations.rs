//! Tests of operations that clients look up at other nodes.
#![cfg(test)]

use gorego_integration::{
    client::Client,
    cluster::Node,
    executor::{Executor, Gate, Messages, TestAction, outcome, succeeded},
};
use reapi::{
    gorego::cluster::{Frame, ReadLogRequest, mesh_client::MeshClient},
    longrunning::{
        GetOperationRequest, ListOperationsRequest, Operation, operations_client::OperationsClient,
    },
    v2::execution_stage::Value,
};
use tonic::{Code, Status, transport::Channel};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

fn operations(of: &Executor) -> OperationsClient<Channel> {
    OperationsClient::new(of.client.channel())
}

async fn get(at: &Executor, name: &str) -> Result<Operation, Status> {
    let request = GetOperationRequest {
        name: name.to_owned(),
    };
    let response = operations(at).get_operation(request).await;
    response.map(tonic::Response::into_inner)
}

/// Returns the names on all pages with one operation each, sorted. The names of the clients' operations begin with
/// them.
async fn listed(at: &Executor) -> Vec<String> {
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListOperationsRequest {
            page_size: 1,
            page_token,
            ..ListOperationsRequest::default()
        };
        let page = operations(at).list_operations(request).await.unwrap();
        let page = page.into_inner();
        assert!(page.operations.len() <= 1, "{page:?}");
        names.extend(page.operations.into_iter().map(|operation| operation.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            names.sort();
            return names;
        }
    }
}

/// Starts nodes that have a platform each.
async fn start() -> [Node; 3] {
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("execution.platform=pool={name}"));
    let a = Node::start("a", "", &[ONE, &a]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE, &b]).await;
    let c = Node::start("c", &a.mesh.to_string(), &[ONE, &c]).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    [a, b, c]
}

/// Starts an action at a node, and waits until it runs on another one.
async fn running(node: &Node, on: &Node, gate: &Gate, number: usize) -> Messages {
    let script = format!("{}; echo {} {number}", gate.pass(), node.name);
    let action = TestAction::script(&script).property("pool", &on.name);
    let mut messages = node.executor.start(&action).await;
    messages.reach(Value::Executing).await;
    assert_eq!(node.places().await, [on.name.as_str()]);
    messages
}

/// Returns the owner and the taker of an action, for each owner.
fn pairs(nodes: &[Node; 3]) -> [[&Node; 2]; 3] {
    let [a, b, c] = nodes;
    [[a, b], [b, c], [c, a]]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_for_the_operations_of_all() {
    let nodes = start().await;
    let mut gate = Gate::new();
    let mut own = Vec::new();
    for [owner, taker] in pairs(&nodes) {
        own.push(running(owner, taker, &gate, 0).await);
    }
    gate.wait_for_starts(3);
    let mut names: Vec<_> = own.iter().map(|messages| messages.name.clone()).collect();
    names.sort();
    let mut elsewhere = Vec::new();
    for at in &nodes {
        let listed = listed(&at.executor).await;
        assert_eq!(listed.len(), names.len(), "{listed:?} at {}", at.name);
        for (listed, name) in listed.iter().zip(&names) {
            assert!(name.starts_with(listed.as_str()), "{listed} at {}", at.name);
            assert!(!get(&at.executor, listed).await.unwrap().done);
        }
        for name in &names {
            let operation = get(&at.executor, name).await.unwrap();
            assert_eq!((&operation.name, operation.done), (name, false));
            let mut messages = at.executor.wait(name).await.unwrap();
            messages.reach(Value::Executing).await;
            elsewhere.push(messages);
        }
    }
    gate.open_for(3);
    for mut messages in own.into_iter().chain(elsewhere) {
        succeeded(messages.response().await);
    }
    for at in &nodes {
        for name in &names {
            assert!(get(&at.executor, name).await.unwrap().done);
        }
        assert!(listed(&at.executor).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_cancels_the_operations_of_all() {
    let nodes = start().await;
    let gate = Gate::new();
    for [owner, taker] in pairs(&nodes) {
        for (number, at) in nodes.iter().enumerate() {
            let mut messages = running(owner, taker, &gate, number).await;
            at.executor.cancel(&messages.name).await.unwrap();
            let (code, _) = outcome(&messages.response().await);
            assert_eq!(code, Code::Cancelled, "of {} at {}", owner.name, at.name);
        }
    }
    gate.wait_for_end_of_processes();
}

/// Checks that no node has an operation of this name.
async fn is_unknown(nodes: &[&Node], name: &str) {
    for at in nodes {
        let at = &at.executor;
        let answers = [
            at.wait(name).await.map(drop),
            get(at, name).await.map(drop),
            at.cancel(name).await,
        ];
        for answer in answers {
            assert_eq!(answer.unwrap_err().code(), Code::NotFound, "{name}");
        }
        assert!(listed(at).await.is_empty(), "after {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_of_a_killed_or_restarted_node_are_not_found() {
    let [a, b, mut c] = start().await;
    let gate = Gate::new();
    let lost = running(&c, &a, &gate, 0).await.name;
    let dropped = a.executor.wait(&lost).await.unwrap();
    c.server.kill();
    let broken = { dropped }.ended().await.unwrap_err();
    assert_eq!(broken.code(), Code::Unavailable, "{broken}");
    // A call waits until the node is known to be gone, so that clients need few retries.
    is_unknown(&[&a, &b], &lost).await;
    let c = c.restart().await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    is_unknown(&[&a, &b, &c], &lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_about_the_operations_of_a_stopped_node_end_and_it_answers_when_it_goes_on() {
    let [a, b, c] = start().await;
    let mut gate = Gate::new();
    let mut own = running(&c, &a, &gate, 0).await;
    let mut waiting = b.executor.wait(&own.name).await.unwrap();
    waiting.reach(Value::Executing).await;
    c.server.freeze();
    // The system still accepts connections for it.
    let found = get(&b.executor, &own.name);
    let (broken, found) = tokio::join!(waiting.ended(), found);
    assert_eq!(broken.unwrap_err().code(), Code::Unavailable);
    assert_eq!(found.unwrap_err().code(), Code::NotFound);
    is_unknown(&[&a, &b], &own.name).await;
    c.server.thaw();
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    assert!(!get(&b.executor, &own.name).await.unwrap().done);
    gate.open_for(2);
    succeeded(own.response().await);
}

/// Calls the service of nodes, and returns its refusals.
async fn mesh_refusals(channel: Channel) -> [Status; 2] {
    let mut mesh = MeshClient::new(channel);
    let frames = tokio_stream::iter([Frame::default()]);
    let link = mesh.link(frames).await.map(drop);
    let log = mesh.read_log(ReadLogRequest::default()).await.map(drop);
    [link.unwrap_err(), log.unwrap_err()]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_for_clients_offers_neither_links_nor_logs_of_nodes() {
    let a = Node::start("a", "", &[ONE]).await;
    for refusal in mesh_refusals(a.executor.client.channel()).await {
        assert_eq!(refusal.code(), Code::Unimplemented, "{refusal}");
    }
    // The port for nodes knows both, and misses their content.
    for refusal in mesh_refusals(Client::connect(a.mesh).await.channel()).await {
        assert_ne!(refusal.code(), Code::Unimplemented, "{refusal}");
    }
}
