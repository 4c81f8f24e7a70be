//! Metrics of the cluster.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::metrics::MetricType;

use super::encode::{Encoder, Metric};
use crate::durations::{BOUNDS, TracedSeconds};

const MEMBERS: Metric = Metric::new("cluster_members", "Other nodes of the cluster by state.");
const LINKS: Metric = Metric::new("cluster_links", "Links to other nodes.");
const ROUND_TRIP: Metric = Metric::seconds(
    "cluster_link_round_trip",
    "The last round trip of a message to a node.",
);
const OFFERED: Metric = Metric::new(
    "cluster_offered_actions",
    "Actions in the queues of other nodes that this node may run.",
);
const GIVEN: Metric = Metric::new(
    "cluster_handed_over_actions",
    "Attempts to run an action that other nodes got from this one.",
);
const TAKEN: Metric = Metric::new(
    "cluster_taken_actions",
    "Attempts to run an action that this node got from others.",
);
const ELSEWHERE: Metric = Metric::new(
    "cluster_actions_elsewhere",
    "Actions of this node that other nodes run now.",
);
const REQUEUED: Metric = Metric::new(
    "cluster_requeued_actions",
    "Actions that were queued again after another node did not end them, by cause.",
);
const STARTS: Metric = Metric::seconds(
    "cluster_start",
    "The time from the claim of a free slot here to the start of another node's action in it.",
);
const READ: Metric = Metric::bytes(
    "cluster_blobs_read",
    "Bytes of blobs that this node read from others.",
);
const WRITTEN: Metric = Metric::bytes(
    "cluster_blobs_written",
    "Bytes of blobs that this node wrote to others.",
);

/// The times from the claims of free slots to the starts of other nodes' actions in them.
#[derive(Debug)]
pub struct StartTimes(TracedSeconds);

impl Default for StartTimes {
    fn default() -> Self {
        Self(TracedSeconds::new(BOUNDS))
    }
}

impl StartTimes {
    /// Records a start.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took, None);
    }
}

/// The numbers of a cluster, as one of its nodes knows them. All but `members`, `links`, `round_trips`, `offered` and
/// `elsewhere` are totals since the start.
#[derive(Clone, Debug, Default)]
pub struct ClusterReport {
    /// The number of other nodes by state.
    pub members: Vec<(&'static str, u64)>,
    /// The number of links.
    pub links: u64,
    /// The last round trip to each node that there is a link to, in seconds.
    pub round_trips: Vec<(String, f64)>,
    /// The actions in the queues of other nodes that this node may run.
    pub offered: u64,
    /// The attempts that other nodes got from this one.
    pub given: u64,
    /// The attempts that this node got from others.
    pub taken: u64,
    /// The actions of this node that other nodes run now.
    pub elsewhere: u64,
    /// The actions that were queued again after another node did not end them, by cause.
    pub requeued: Vec<(&'static str, u64)>,
    /// The times until actions of other nodes started.
    pub starts: Arc<StartTimes>,
    /// The bytes of blobs that were read from other nodes.
    pub read_bytes: u64,
    /// The bytes of blobs that were written to other nodes.
    pub written_bytes: u64,
}

pub(super) fn encode(mut encoder: Encoder<'_>, now: &ClusterReport) -> fmt::Result {
    let states = now.members.iter();
    encoder.gauges(
        MEMBERS,
        states.map(|(state, number)| ([("state", *state)], *number)),
    )?;
    encoder.gauge(LINKS, now.links)?;
    let trips = now.round_trips.iter();
    let trips = trips.map(|(node, seconds)| ([("node", node.clone())], *seconds));
    encoder.gauges(ROUND_TRIP, trips)?;
    encoder.gauge(OFFERED, now.offered)?;
    encoder.gauge(ELSEWHERE, now.elsewhere)?;
    encoder.counter(GIVEN, now.given)?;
    encoder.counter(TAKEN, now.taken)?;
    let causes = now.requeued.iter();
    encoder.counters(
        REQUEUED,
        causes.map(|(cause, number)| ([("cause", *cause)], *number)),
    )?;
    let starts = encoder.descriptor(STARTS, MetricType::Histogram)?;
    now.starts.0.encode(starts)?;
    encoder.counter(READ, now.read_bytes)?;
    encoder.counter(WRITTEN, now.written_bytes)
}
