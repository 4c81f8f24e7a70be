//! Tests of nodes with bad links, and of strangers at their ports.
#![cfg(test)]

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use gorego_integration::{
    cluster::{self, Crowd, Node},
    executor::{self, Executor, Gate, Messages, TestAction, succeeded},
    server::Server,
    toxiproxy::Toxiproxy,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value as Json, json};
use tokio::{net::TcpStream, time::timeout};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// The name of the thread for links.
const THREAD: &str = "gorego-links";

/// Returns whether a server has a thread for links.
fn has_thread(server: &Server) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
    names.flatten().any(|name| name.trim_end() == THREAD)
}

/// Returns the nice value of actions.
async fn nice_of_actions(executor: &Executor) -> i32 {
    let result = succeeded(executor.execute(&TestAction::script("nice")).await);
    executor.stdout(&result).await.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn links_have_a_thread_of_their_own_and_actions_a_lower_priority() {
    let own = Command::new("nice").output().unwrap().stdout;
    let own: i32 = String::from_utf8(own).unwrap().trim().parse().unwrap();
    let [a] = cluster::start::<1>(&[ONE]).await;
    assert!(has_thread(&a.server));
    assert_eq!(nice_of_actions(&a.executor).await, (own + 5).min(19));
    let (server, executor) = executor::start(&[]).await;
    assert!(!has_thread(&server));
    assert_eq!(nice_of_actions(&executor).await, own);
}

/// Opens connections that send nothing, as many as this process may have, but at most 3,000.
async fn idle_connections(to: SocketAddr) -> Vec<TcpStream> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let count = limit.maximum.map_or(3000, |most| most.min(6000) / 2);
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(TcpStream::connect(to).await.unwrap());
    }
    idle
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_port_for_nodes_keep_neither_clients_nor_nodes_away() {
    let few = [ONE, "cluster.max_nodes=4"];
    let a = Node::start("a", "", &few).await;
    let b = Node::start("b", &a.mesh.to_string(), &few).await;
    b.wait_for_members(&["a", "b"]).await;
    let strangers = idle_connections(a.mesh).await;
    let c = Node::start("c", &a.mesh.to_string(), &few).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 3).await;
    gate.wait_for_starts(3);
    assert_eq!(a.places().await, ["a", "b", "c"]);
    // The limit of connections is that of four nodes and of handshakes.
    let open = fs::read_dir(format!("/proc/{}/fd", a.server.id())).unwrap();
    assert!(open.count() < 400);
    gate.open_for(3);
    crowd.finish(&a).await;
    drop(strangers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_beyond_the_limit_works_alone_until_another_one_stops() {
    let two = [ONE, "cluster.max_nodes=2"];
    let a = Node::start("a", "", &two).await;
    let mut b = Node::start("b", &a.mesh.to_string(), &two).await;
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let c = Node::start("c", &a.mesh.to_string(), &two).await;
    c.server
        .wait_for_log("the cluster already has cluster.max_nodes and refuses this node");
    let refusal = "a node is refused, since the cluster already has cluster.max_nodes";
    let log = a.server.wait_for_log(refusal);
    let line = log.lines().find(|line| line.contains(refusal)).unwrap();
    assert!(line.contains(r#""node":"c"#), "{line}");
    for (node, known) in [(&a, &["a", "b"][..]), (&b, &["a", "b"]), (&c, &["c"])] {
        node.wait_for_members(known).await;
        let action = TestAction::script(&format!("echo {}", node.name));
        let result = succeeded(node.executor.execute(&action).await);
        assert_eq!(
            node.executor.stdout(&result).await,
            format!("{}\n", node.name)
        );
    }
    b.server.ask_to_stop();
    assert!(b.server.wait().success());
    for node in [&a, &c] {
        node.wait_for_members(&["a", "c"]).await;
    }
}

/// Two nodes whose links lead through toxiproxy. The first runs one action at a time, the second three.
struct Pair {
    toxiproxy: Toxiproxy,
    a: Node,
    b: Node,
}

impl Pair {
    async fn start() -> Self {
        let toxiproxy = Toxiproxy::start();
        let (to_a, to_b) = (toxiproxy.add("a").await, toxiproxy.add("b").await);
        let at = |address| format!("cluster.advertise_addr={address}");
        let a = Node::start("a", "", &[ONE, &at(to_a)]).await;
        toxiproxy.lead("a", a.mesh).await;
        let three = ["execution.concurrency=3", &at(to_b)];
        let b = Node::start("b", &to_a.to_string(), &three).await;
        toxiproxy.lead("b", b.mesh).await;
        for node in [&a, &b] {
            node.wait_for_members(&["a", "b"]).await;
        }
        Self { toxiproxy, a, b }
    }

    async fn poison(&self, toxic: &str, attributes: Json) {
        for proxy in ["a", "b"] {
            self.toxiproxy
                .poison(proxy, toxic, attributes.clone())
                .await;
        }
    }

    /// Waits until the second node runs no action of the first, as the first knows it.
    async fn wait_for_loss(&self) {
        let lost = async { while self.a.places().await.contains(&self.b.name) {} };
        let lost = timeout(PATIENCE, lost).await;
        lost.expect("the first node notices the broken link");
    }

    /// Ends all faults, and checks that both nodes share work.
    async fn assert_heals(&self) {
        self.toxiproxy.heal().await;
        for node in [&self.a, &self.b] {
            node.wait_for_members(&["a", "b"]).await;
        }
        // An action that failed at the second node waits for the first, as may one that begins before the second node
        // reads inputs again.
        let shared = async { while !self.shares().await {} };
        let shared = timeout(2 * PATIENCE, shared).await;
        shared.expect("both nodes run actions of the first");
    }

    /// Executes as many actions as both nodes run at once. Returns whether they did within a few seconds.
    async fn shares(&self) -> bool {
        let mut gate = Gate::new();
        let crowd = Crowd::start(&self.a, &gate, 4).await;
        let places = async { while self.a.places().await != ["a", "b", "b", "b"] {} };
        let is_shared = timeout(Duration::from_secs(10), places).await.is_ok();
        gate.open_for(ENOUGH);
        crowd.finish(&self.b).await;
        is_shared
    }
}

/// Actions at the first node, each with inputs and an output of its own.
struct Loads(Vec<(String, Messages)>);

impl Loads {
    async fn start(pair: &Pair, gate: &Gate) -> Self {
        let mut loads = Vec::new();
        for number in 0..8 {
            let line = format!("{number}\n").repeat(8 * 1024);
            let script = format!("{}; cat input | tee file", gate.pass());
            let action = TestAction::script(&script).input("input", line.clone());
            let action = action.output("file");
            loads.push((line, pair.a.executor.start(&action).await));
        }
        Self(loads)
    }

    /// Checks that each action is answered once, with its own output.
    async fn assert_end(self, pair: &Pair) {
        for (line, mut messages) in self.0 {
            let result = succeeded(messages.response().await);
            assert!(pair.a.executor.stdout(&result).await == line);
            assert!(pair.a.executor.file(&result, "file").await == line);
        }
    }
}

/// The attempts that the gate lets end, more than all actions have.
const ENOUGH: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn actions_end_right_over_a_slow_link_of_toxiproxy() {
    let pair = Pair::start().await;
    for (toxic, attributes) in [
        ("latency", json!({"latency": 200})),
        ("bandwidth", json!({"rate": 64})),
    ] {
        pair.poison(toxic, attributes).await;
        let mut gate = Gate::new();
        let loads = Loads::start(&pair, &gate).await;
        gate.wait_for_starts(4);
        gate.open_for(ENOUGH);
        loads.assert_end(&pair).await;
        pair.assert_heals().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_end_right_while_toxiproxy_resets_the_link() {
    let pair = Pair::start().await;
    let mut gate = Gate::new();
    let loads = Loads::start(&pair, &gate).await;
    gate.wait_for_starts(4);
    for _ in 0..2 {
        pair.poison("reset_peer", json!({"timeout": 0})).await;
        pair.toxiproxy.heal().await;
        gate.open_for(2);
    }
    pair.poison("reset_peer", json!({"timeout": 0})).await;
    pair.wait_for_loss().await;
    gate.open_for(ENOUGH);
    loads.assert_end(&pair).await;
    pair.assert_heals().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_end_right_when_toxiproxy_delivers_no_more_data() {
    let pair = Pair::start().await;
    let mut gate = Gate::new();
    let loads = Loads::start(&pair, &gate).await;
    gate.wait_for_starts(4);
    pair.poison("timeout", json!({"timeout": 0})).await;
    pair.wait_for_loss().await;
    gate.open_for(ENOUGH);
    loads.assert_end(&pair).await;
    pair.assert_heals().await;
}
