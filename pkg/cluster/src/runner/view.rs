//! The cluster as one node knows it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gorego_scheduler::Generation;
use reapi::gorego::cluster::Load;

use super::parts::Parts;
use crate::{membership::MemberState, record::Record};

/// The nodes of a cluster, and the counts of one of them.
#[derive(Clone, Debug)]
pub struct View {
    /// The name of the cluster.
    pub cluster: String,
    /// The nodes by name, including this one.
    pub nodes: Vec<NodeView>,
    /// The numbers of actions that were handed over.
    pub counts: Counts,
}

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The facts about it.
    pub record: Arc<Record>,
    /// `self`, `alive`, `failing`, `suspect`, `draining` or `down`.
    pub state: &'static str,
    /// Its load; `None` if it is not known now.
    pub load: Option<Load>,
    /// The actions of this node that the node runs.
    pub taken: u64,
    /// The actions of the node that this node runs.
    pub given: u64,
    /// Set if there is a link to it.
    pub has_link: bool,
    /// The last round trip of a message to it; `None` if it is not known.
    pub round_trip: Option<Duration>,
}

/// The numbers of actions that were handed over. All but `elsewhere` and `offered` are totals since the start.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// The attempts that other nodes got.
    pub given: u64,
    /// The attempts that this node got from others.
    pub taken: u64,
    /// The attempts that other nodes run now.
    pub elsewhere: u64,
    /// The attempts that were lost because a node sent no news of them.
    pub lost: u64,
    /// The attempts that were lost with a node or its link.
    pub gone: u64,
    /// The attempts that a node did not begin.
    pub declined: u64,
    /// The attempts that a node stopped because it shut down, or for another reason of its own.
    pub stopped: u64,
    /// The attempts that failed at a node, after which the action was queued again.
    pub failed: u64,
    /// The queued actions of other nodes that this one may run.
    pub offered: BTreeMap<Generation, u64>,
}

impl View {
    /// Returns the view of a node without others.
    pub(super) fn of(cluster: &str, me: &Record) -> Self {
        Self {
            cluster: cluster.to_owned(),
            nodes: vec![NodeView::of(me.clone().into(), "self")],
            counts: Counts::default(),
        }
    }

    /// Returns whether no other node is up.
    pub fn is_alone(&self) -> bool {
        let others = self.nodes.iter().filter(|node| node.state != "self");
        others.filter(|node| node.state != "down").count() == 0
    }
}

impl NodeView {
    fn of(record: Arc<Record>, state: &'static str) -> Self {
        Self {
            record,
            state,
            load: None,
            taken: 0,
            given: 0,
            has_link: false,
            round_trip: None,
        }
    }
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Returns the view, and removes state that is no longer needed.
    pub(super) fn view(
        &mut self,
        cluster: &str,
        me: &Record,
        members: &[(Arc<Record>, MemberState)],
    ) -> View {
        self.forget_given();
        self.update_failing();
        let own = NodeView {
            load: Some(self.own_load()),
            ..NodeView::of(me.clone().into(), "self")
        };
        let others = members.iter().map(|(record, state)| {
            let linked = self.linked.get(&record.node);
            let (taken, given) = self.shared_with(&record.node);
            NodeView {
                load: linked.and_then(|linked| linked.load),
                taken,
                given,
                has_link: linked.is_some(),
                round_trip: self.links.round_trip(&record.node),
                ..NodeView::of(Arc::clone(record), self.state_of(record, *state))
            }
        });
        let mut nodes: Vec<_> = others.chain([own]).collect();
        nodes.sort_by(|a, b| a.record.node.node().cmp(b.record.node.node()));
        View {
            cluster: cluster.to_owned(),
            nodes,
            counts: Counts {
                elsewhere: self.scheduler.totals().elsewhere as u64,
                ..self.counts.clone()
            },
        }
    }
}
