//! The cluster, as the page and the metrics show it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use gorego_cluster::runner::{Cluster, NodeView};
use gorego_storage::Traffic;
use gorego_telemetry::{
    ClusterReport, StartTimes,
    web::{PeerList, PeerNode, PeerSource},
};

/// Counts in addition to those of the cluster itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    /// The bytes that are read from other nodes and written to them.
    pub(crate) traffic: Arc<Traffic>,
    /// The times until actions of other nodes started at this node.
    pub(crate) starts: Arc<StartTimes>,
}

/// Returns the source of the page.
pub(crate) fn peers(cluster: &Arc<Cluster>) -> PeerSource {
    let cluster = Arc::clone(cluster);
    Box::new(move || {
        let view = cluster.view();
        let own = view.nodes.iter().find(|node| node.state == "self");
        PeerList {
            node: own.map_or_else(String::new, |own| own.record.node.node().to_owned()),
            cluster: view.cluster,
            nodes: view.nodes.iter().map(node).collect(),
        }
    })
}

fn node(node: &NodeView) -> PeerNode {
    let record = &node.record;
    let platform = record.platform.iter();
    PeerNode {
        name: record.node.node().to_owned(),
        generation: record.node.number(),
        address: record.address.clone(),
        state: node.state.to_owned(),
        version: record.version.clone(),
        slots: record.slots.into(),
        running: node.load.map(|load| load.running.into()),
        queued: node.load.map(|load| load.queued.into()),
        taken: node.taken,
        given: node.given,
        cores: record.cores.into(),
        memory: record.memory,
        platform: platform
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        round_trip_ms: node.round_trip.map(|trip| 1000.0 * trip.as_secs_f64()),
    }
}

/// Returns the counts for the metrics.
pub(crate) fn counts(cluster: &Cluster, counters: &Counters) -> ClusterReport {
    let view = cluster.view();
    let mut members =
        BTreeMap::from(["alive", "failing", "suspect", "draining", "down"].map(|it| (it, 0)));
    for node in view.nodes.iter().filter(|node| node.state != "self") {
        *members.entry(node.state).or_default() += 1;
    }
    let counts = view.counts;
    let round_trips = view.nodes.iter().filter_map(|node| {
        let name = node.record.node.node().to_owned();
        Some((name, node.round_trip?.as_secs_f64()))
    });
    ClusterReport {
        members: members.into_iter().collect(),
        links: view.nodes.iter().filter(|node| node.has_link).count() as u64,
        round_trips: round_trips.collect(),
        offered: counts.offered.values().sum(),
        given: counts.given,
        taken: counts.taken,
        elsewhere: counts.elsewhere,
        requeued: vec![
            ("declined", counts.declined),
            ("failed", counts.failed),
            ("lease", counts.lost),
            ("node_lost", counts.gone),
            ("stopped", counts.stopped),
        ],
        starts: Arc::clone(&counters.starts),
        read_bytes: counters.traffic.read.load(Relaxed),
        written_bytes: counters.traffic.written.load(Relaxed),
    }
}
