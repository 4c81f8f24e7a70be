//! The platforms of other nodes.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use gorego_storage::shorten;
use parking_lot::Mutex;
use reapi::v2::{Platform, platform::Property};
use tokio::time::{Instant, sleep};

use super::{HERE, PERSISTENT_WORKER, accepts, properties};

/// The time for which an action waits for a node with its platform.
const WAIT: Duration = Duration::from_secs(30);
/// The period in which the other nodes are checked meanwhile.
const POLL: Duration = Duration::from_millis(200);
/// The most texts of platforms that are kept to be shared, and the longest, in bytes.
const MAX_TEXTS: usize = 1000;
const MAX_TEXT: usize = 4096;

/// A function that returns the values of a property at other nodes.
type Values = dyn Fn(&str) -> Vec<String> + Send + Sync;

/// The platforms of other nodes, which can also run actions.
#[derive(Clone)]
pub struct PeerPlatforms {
    meets: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    values: Arc<Values>,
    wait: Duration,
    /// The texts of platforms. Actions of one platform share one.
    texts: Arc<Mutex<HashSet<Arc<str>>>>,
}

impl PeerPlatforms {
    /// Wraps a function that returns whether another node meets a platform, given its text (see [`properties`]), or met
    /// it a while ago. The function is called at least once a second.
    pub fn new(meets: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self {
            meets: Arc::new(meets),
            values: Arc::new(|_| Vec::new()),
            wait: WAIT,
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

    /// Waits until another node meets a platform. Returns false if none does in time. The time counts from `since` on.
    pub(crate) async fn wait_for(&self, platform: &str, since: Instant) -> bool {
        while !self.meets(platform) {
            if since.elapsed() >= self.wait {
                return false;
            }
            sleep(POLL).await;
        }
        true
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
