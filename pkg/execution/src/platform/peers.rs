//! The platforms of other nodes.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use gorego_storage::shorten;
use parking_lot::Mutex;
use reapi::v2::{Platform, platform::Property};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{HERE, PERSISTENT_WORKER, accepts, properties};

/// The time for which an action waits for a node with its platform.
const WAIT: Duration = Duration::from_secs(30);
/// The most texts of platforms that are kept to be shared, and the longest, in bytes.
const MAX_TEXTS: usize = 1000;
const MAX_TEXT: usize = 4096;

/// A function that returns the values of a property at other nodes.
type Values = dyn Fn(&str) -> Vec<String> + Send + Sync;
/// A function that returns a number that grows when other nodes come or go.
type Version = dyn Fn() -> u64 + Send + Sync;

/// The platforms of other nodes, which can also run actions.
#[derive(Clone)]
pub struct PeerPlatforms {
    meets: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    values: Arc<Values>,
    wait: Duration,
    version: Arc<Version>,
    /// Notified when other nodes came or went.
    changes: Arc<watch::Sender<u64>>,
    /// The texts of platforms. Actions of one platform share one.
    texts: Arc<Mutex<HashSet<Arc<str>>>>,
}

impl PeerPlatforms {
    /// Wraps a function that returns whether another node meets a platform, or met it in the last minutes. The platform
    /// is a text of [`properties`].
    pub fn new(meets: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self {
            meets: Arc::new(meets),
            values: Arc::new(|_| Vec::new()),
            wait: WAIT,
            version: Arc::new(|| 0),
            changes: Arc::default(),
            texts: Arc::default(),
        }
    }

    /// Sets the function that returns the values of a property at the other nodes, for messages.
    #[must_use]
    pub fn with_values(
        mut self,
        values: impl Fn(&str) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.values = Arc::new(values);
        self
    }

    /// Sets the function that returns a number that grows when other nodes come or go. It is called several times a
    /// second.
    #[must_use]
    pub fn with_version(mut self, version: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.version = Arc::new(version);
        self
    }

    /// Sets the time for which an action waits for a node with its platform; by default 30 s.
    #[must_use]
    pub const fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Returns whether another node meets a platform.
    pub(crate) fn meets(&self, platform: &str) -> bool {
        (self.meets)(platform)
    }

    /// Wakes the actions that wait for a platform, if other nodes came or went. Returns whether they did.
    pub(crate) fn check(&self) -> bool {
        let version = (self.version)();
        self.changes
            .send_if_modified(|last| std::mem::replace(last, version) != version)
    }

    /// Waits until another node meets a platform. Returns false if none does in time. The time counts from `since` on.
    pub(crate) async fn wait_for(&self, platform: &str, since: Instant) -> bool {
        let mut changes = self.changes.subscribe();
        let is_met = changes.wait_for(|_| self.meets(platform));
        matches!(timeout_at(since + self.wait, is_met).await, Ok(Ok(_)))
    }

    /// Returns the values that other nodes have instead of those of a platform.
    pub(super) fn refusal(&self, platform: &str) -> String {
        let unmet = properties(platform).find_map(|(name, value)| {
            let values = (self.values)(name);
            let is_met = values.iter().any(|found| accepts(name, found, value));
            (!is_met).then_some((name, values))
        });
        match unmet {
            Some((name, values)) if values.is_empty() => {
                format!("no other node has {:?}", shorten(name))
            }
            Some((name, values)) => {
                let values = values.join(", ");
                format!("other nodes have {:?}: {}", shorten(name), shorten(&values))
            }
            None => "no other node that runs actions has all of its platform".to_owned(),
        }
    }

    /// Returns the text of a platform, which is the same for all orders of its properties. With `is_here`, returns the
    /// text of an action that must run on this node.
    pub(crate) fn text(&self, platform: &Platform, is_here: bool) -> Arc<str> {
        let needed = |property: &&Property| !property.name.starts_with(PERSISTENT_WORKER);
        let needed = platform.properties.iter().filter(needed);
        let mut needed: Vec<_> = needed.map(|it| (&*it.name, &*it.value)).collect();
        needed.sort_unstable();
        let pairs = needed.into_iter();
        let pairs = pairs.flat_map(|(name, value)| [name, "\0", value, "\0"]);
        let begin = is_here.then_some(HERE);
        let text: String = begin.into_iter().chain(pairs).collect();
        if text.len() > MAX_TEXT {
            return text.into();
        }
        let mut texts = self.texts.lock();
        if let Some(known) = texts.get(&*text) {
            return Arc::clone(known);
        }
        if texts.len() >= MAX_TEXTS {
            texts.clear();
        }
        let text = Arc::<str>::from(text);
        texts.insert(Arc::clone(&text));
        text
    }
}

impl fmt::Debug for PeerPlatforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerPlatforms").finish_non_exhaustive()
    }
}
