//! The table of the nodes of a cluster.

use gorego_telemetry::web::PeerList;

use super::text::{Table, bytes, clean, count, counted, seconds};

/// Renders the nodes.
pub(super) fn render(list: &PeerList) -> String {
    let header = [
        "Node", "State", "Address", "Version", "Running", "Slots", "Queued", "Takes", "Gives",
        "Memory", "Trip",
    ];
    let mut table = Table::new(4, header);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for node in &list.nodes {
        let trip = node.round_trip_ms;
        table.rows.push(vec![
            clean(&node.name),
            clean(&node.state),
            clean(&node.address),
            clean(&node.version),
            or_none(node.running.map(count)),
            count(node.slots),
            or_none(node.queued.map(count)),
            count(node.taken),
            count(node.given),
            bytes(node.memory),
            or_none(trip.map(|ms| seconds(Some(ms / 1000.0)))),
        ]);
    }
    let lines = table.lines().join("\n");
    let nodes = counted(list.nodes.len() as u64, "node");
    let (cluster, node) = (clean(&list.cluster), clean(&list.node));
    format!("{lines}\nCluster {cluster}: {nodes}, seen from {node}\n")
}

#[cfg(test)]
mod tests {
    use gorego_telemetry::web::PeerNode;

    use super::*;

    #[test]
    fn nodes_are_a_table_without_control_characters() {
        let node = |name: &str, state: &str, running| PeerNode {
            name: name.to_owned(),
            state: state.to_owned(),
            address: "10.0.0.1:7946".to_owned(),
            version: "1.2.3".to_owned(),
            slots: 8,
            running,
            memory: 1 << 30,
            ..PeerNode::default()
        };
        let list = PeerList {
            cluster: "build\u{1b}[2J".to_owned(),
            node: "a".to_owned(),
            nodes: vec![node("a", "self", Some(3)), node("b", "down", None)],
        };
        assert_eq!(
            render(&list),
            "Node  State  Address        Version  Running  Slots  Queued  Takes  Gives    Memory  Trip\n\
             a     self   10.0.0.1:7946  1.2.3          3      8       -      0      0  1.00 GiB     -\n\
             b     down   10.0.0.1:7946  1.2.3          -      8       -      0      0  1.00 GiB     -\n\
             Cluster build\\u{1b}[2J: 2 nodes, seen from a\n"
        );
    }
}
