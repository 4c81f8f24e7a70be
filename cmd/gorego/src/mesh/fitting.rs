//! The platforms of other nodes, which actions can run on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};

use gorego_cluster::{
    record::Record,
    runner::{Cluster, View},
};
use gorego_execution::PeerPlatforms;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::work::fits;

/// The time for which a platform counts as present after its last node is gone.
const GRACE: Duration = Duration::from_mins(5);
/// The most platforms for which the answer is remembered.
const MAX_ANSWERS: usize = 1000;
/// The longest platform for which the answer is kept, in bytes.
const MAX_TEXT: usize = 4096;
/// The most values of a property that a message names.
const MAX_VALUES: usize = 20;

/// Returns the other nodes that take actions.
fn takers(view: View) -> impl Iterator<Item = Arc<Record>> {
    let nodes = view.nodes.into_iter();
    let takers = nodes.filter(|node| ["alive", "failing", "suspect"].contains(&node.state));
    let records = takers.map(|node| node.record);
    records.filter(|record| record.slots > 0)
}

/// The nodes that took actions in the last minutes.
#[derive(Debug, Default)]
struct RecentTakers {
    /// The nodes by name, and the last time that each took actions.
    nodes: BTreeMap<String, (Arc<Record>, Instant)>,
    /// A number that grows when a node or its platform changes.
    version: u64,
    /// The answers of [`Self::meets`] since the last change. Thousands of actions may wait for a few platforms, and all
    /// ask after each change.
    answers: HashMap<String, bool>,
}

impl RecentTakers {
    fn update(&mut self, takers: impl Iterator<Item = Arc<Record>>) {
        let (now, version) = (Instant::now(), self.version);
        for record in takers {
            let name = record.node.node().to_owned();
            let platform = Some(&record.platform);
            let known = self.nodes.get(&name);
            if known.map(|(record, _)| &record.platform) != platform {
                self.version += 1;
            }
            self.nodes.insert(name, (record, now));
        }
        let before = self.nodes.len();
        self.nodes
            .retain(|_, (_, seen)| now.saturating_duration_since(*seen) < GRACE);
        if self.nodes.len() != before {
            self.version += 1;
        }
        if self.version != version {
            self.answers.clear();
        }
    }

    fn meets(&mut self, platform: &str) -> bool {
        if let Some(answer) = self.answers.get(platform) {
            return *answer;
        }
        let mut nodes = self.nodes.values();
        let answer = nodes.any(|(record, _)| fits(record, platform));
        if platform.len() <= MAX_TEXT {
            if self.answers.len() >= MAX_ANSWERS {
                self.answers.clear();
            }
            self.answers.insert(platform.to_owned(), answer);
        }
        answer
    }

    fn values(&self, name: &str) -> Vec<String> {
        let records = self.nodes.values();
        let values = records.flat_map(|(record, _)| record.values(name).map(str::to_owned));
        let mut values: Vec<_> = values.collect();
        values.sort_unstable();
        values.dedup();
        values.truncate(MAX_VALUES);
        values
    }
}

/// Returns the platforms of the other nodes that take actions, or took some in the last five minutes.
pub(super) fn platforms(joined: Arc<OnceLock<Arc<Cluster>>>) -> PeerPlatforms {
    let seen = Arc::new(Mutex::new(RecentTakers::default()));
    let (named, met) = (Arc::clone(&seen), Arc::clone(&seen));
    let version = move || {
        let mut seen = seen.lock();
        if let Some(cluster) = joined.get() {
            seen.update(takers(cluster.view()));
        }
        seen.version
    };
    PeerPlatforms::new(move |platform| met.lock().meets(platform))
        .with_values(move |name| named.lock().values(name))
        .with_version(version)
}

#[cfg(test)]
mod tests {
    use gorego_scheduler::Generation;

    use super::*;

    fn node(name: &str, gpu: &str) -> Arc<Record> {
        Arc::new(Record {
            node: Generation::new(name, 1).unwrap(),
            address: "127.0.0.1:1".to_owned(),
            slots: 1,
            memory: 1,
            cores: 1,
            platform: [("gpu".to_owned(), gpu.to_owned())].into(),
            version: String::new(),
            draining: false,
            backing: 0,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_platform_is_met_for_five_minutes_after_its_last_node_is_gone() {
        let mut seen = RecentTakers::default();
        seen.update([node("a", "1"), node("b", "2")].into_iter());
        assert_eq!(seen.values("gpu"), ["1", "2"]);
        tokio::time::advance(GRACE.checked_sub(Duration::from_secs(1)).unwrap()).await;
        seen.update([node("b", "3")].into_iter());
        assert!(seen.meets("gpu\x001\0") && seen.meets("gpu\x003\0"));
        assert!(!seen.meets("gpu\x002\0"));
        tokio::time::advance(Duration::from_secs(1)).await;
        seen.update(std::iter::empty());
        assert!(!seen.meets("gpu\x001\0") && seen.meets("gpu\x003\0"));
        let version = seen.version;
        seen.update([node("b", "3")].into_iter());
        assert_eq!(seen.version, version);
        assert!(!seen.meets("gpu\x004\0"));
        seen.update([node("b", "4")].into_iter());
        assert_ne!(seen.version, version);
        assert!(seen.meets("gpu\x004\0") && !seen.meets("gpu\x003\0"));
    }
}
