//! Tests of nodes that find each other by a real server of the DNS. They need the right to open its port, and pass
//! without it unless they run as root.
#![cfg(test)]

use std::net::{Ipv4Addr, TcpListener};

use gorego_integration::{
    cluster::{Crowd, Node},
    dns::{ADDRESSES, Dns, SERVICES, loopback},
    executor::Gate,
};

/// The words in a log about a name without addresses.
const FAILED: &str = "failed to look up other nodes";

/// Starts a node that looks for others under a name.
async fn start(dns: &Dns, name: &str, found: &str, more: &[&str]) -> Node {
    let found = format!("cluster.dns_service_name={found}");
    let own = [
        "execution.concurrency=1",
        "cluster.discovery_mode=dns",
        &found,
    ];
    Node::start_with_resolver(&dns.resolver(), name, &[&own, more].concat()).await
}

/// Checks that three nodes know each other and share actions.
async fn assert_share(nodes: [&Node; 3]) {
    let names = nodes.map(|node| node.name.as_str());
    for node in nodes {
        node.wait_for_members(&names).await;
    }
    let mut gate = Gate::new();
    let crowd = Crowd::start(nodes[0], &gate, 3).await;
    gate.wait_for_starts(3);
    assert_eq!(nodes[0].places().await, names);
    gate.open_for(3);
    crowd.finish(nodes[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_when_their_addresses_enter_the_dns() {
    let Some(mut dns) = Dns::new() else { return };
    dns.serve(&[]);
    let [of_a, of_b, of_c] = std::array::from_fn(|_| loopback());
    let port = TcpListener::bind((of_a, 0)).unwrap().local_addr();
    let port = format!("cluster.bind_port={}", port.unwrap().port());
    let bind = |address: Ipv4Addr| format!("cluster.bind_addr={address}");

    let a = start(&dns, "a", ADDRESSES, &[&bind(of_a), &port]).await;
    a.server.wait_for_log(FAILED);
    // Looks for no other node.
    let own = ["execution.concurrency=1", &bind(of_b), &port];
    let b = Node::start("b", "", &own).await;
    // Nobody listens at the last one yet.
    dns.set_addresses(&[of_a, of_b, of_c].map(|address| (ADDRESSES, address)));
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let c = start(&dns, "c", ADDRESSES, &[&bind(of_c), &port]).await;
    assert_share([&a, &b, &c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_though_its_name_has_addresses_of_lost_nodes_and_of_strangers() {
    let Some(mut dns) = Dns::new() else { return };
    let [of_a, of_b, lost, strange] = std::array::from_fn(|_| loopback());
    let port = TcpListener::bind((of_a, 0)).unwrap().local_addr();
    let port = port.unwrap().port();
    // Accepts connections, and says nothing.
    let stranger = TcpListener::bind((strange, port)).unwrap();
    dns.set_addresses(&[lost, strange].map(|address| (ADDRESSES, address)));
    dns.serve(&[]);
    let port = format!("cluster.bind_port={port}");
    let bind = |address: Ipv4Addr| format!("cluster.bind_addr={address}");
    let a = start(&dns, "a", ADDRESSES, &[&bind(of_a), &port]).await;
    a.wait_for_readiness(200).await;
    drop(stranger.accept().unwrap());
    dns.set_addresses(&[lost, strange, of_a].map(|address| (ADDRESSES, address)));
    let b = start(&dns, "b", ADDRESSES, &[&bind(of_b), &port]).await;
    let c = Node::start("c", &b.mesh.to_string(), &["execution.concurrency=1"]).await;
    assert_share([&a, &b, &c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_by_services_of_a_dns_server_that_was_down() {
    let Some(mut dns) = Dns::new() else { return };
    let a = start(&dns, "a", SERVICES, &[]).await;
    a.server.wait_for_log(FAILED);
    let b = Node::start("b", "", &["execution.concurrency=1"]).await;
    let host = "one.gorego.test";
    dns.set_addresses(&[(host, Ipv4Addr::LOCALHOST)]);
    // Another host has no address any more.
    dns.serve(&[("gone", b.mesh.port()), ("one", b.mesh.port())]);
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    dns.serve(&[("one", a.mesh.port()), ("one", b.mesh.port())]);
    let c = start(&dns, "c", SERVICES, &[]).await;
    assert_share([&a, &b, &c]).await;
}
