//! Actions whose platform no node has: calls wait for such a node before they are queued, and queued actions end.

use std::time::Duration;

use gorego_scheduler::Runner;
use reapi::v2::ExecuteResponse;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::{Failure, Job, Options, PeerPlatforms, platform::fits, publish};

/// The interval of checks whether nodes came or went.
const PERIOD: Duration = Duration::from_millis(200);
/// The number of intervals after which queued actions are checked even if no node came or went.
const CHECK: u32 = 25;

/// The calls that wait for a node with the platform of their action, as many as may be queued.
#[derive(Debug)]
pub(super) struct Waiting(Semaphore);

impl Waiting {
    pub(super) fn new(options: &Options) -> Self {
        let most = options.scheduler.queue_size.min(Semaphore::MAX_PERMITS);
        Self(Semaphore::new(most))
    }

    /// Waits until a node has a platform. Fails with `why` if none has it in time, counted from `since` on, or at once
    /// if too many calls wait.
    pub(super) async fn wait(
        &self,
        peers: &PeerPlatforms,
        platform: &str,
        since: Instant,
        why: String,
    ) -> Result<(), Failure> {
        let Ok(_permit) = self.0.try_acquire() else {
            let full = "too many actions wait for a node with their platform";
            return Err(Failure::QueueFull(format!(
                "{full} (`execution.queue_size`): {why}"
            )));
        };
        if peers.wait_for(platform, since).await {
            Ok(())
        } else {
            Err(Failure::Unmet(why))
        }
    }
}

/// Ends queued actions whose platform neither this node nor another meets, and wakes those that wait for a node.
pub(super) async fn end(
    runner: Runner<Job, ExecuteResponse>,
    options: Options,
    peers: PeerPlatforms,
) {
    let mut left = 0;
    loop {
        // This call also records the nodes while nothing is queued, so that later actions can wait for nodes that are
        // gone.
        if peers.check() || left == 0 {
            left = CHECK;
            end_unmet(&runner, &options, &peers);
        }
        left -= 1;
        sleep(PERIOD).await;
    }
}

fn end_unmet(runner: &Runner<Job, ExecuteResponse>, options: &Options, peers: &PeerPlatforms) {
    let mut unmet = runner.queued_platforms();
    let is_met = |platform: &str| {
        options.concurrency > 0 && fits(options, platform) || peers.meets(platform)
    };
    unmet.retain(|platform| !is_met(platform));
    if !unmet.is_empty() {
        let why = "no node has had the platform of the action for some minutes";
        let failed = publish::failed(&Failure::Unmet(why.to_owned()));
        runner.end_queued(&unmet, publish::outcome(failed));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use super::*;
    use crate::testing;

    const GPU: &str = "gpu\x002\0";

    fn why() -> String {
        "no node has it".to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_that_no_node_can_run_waits_thirty_seconds() {
        let peers = PeerPlatforms::new(|_| false);
        let waiting = Waiting::new(&testing::options());
        let begin = Instant::now();
        let waited = waiting.wait(&peers, GPU, begin, why()).await;
        assert_eq!(waited, Err(Failure::Unmet(why())));
        assert_eq!(begin.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_actions_as_the_queue_has_places_wait_until_a_node_joins() {
        let nodes = Arc::new(AtomicU64::new(0));
        let (joined, version) = (Arc::clone(&nodes), Arc::clone(&nodes));
        let peers = PeerPlatforms::new(move |_| joined.load(Relaxed) == 2)
            .with_version(move || version.load(Relaxed));
        let mut options = testing::options();
        options.scheduler.queue_size = 2;
        let waiting = Waiting::new(&options);
        let begin = Instant::now();
        let wait = || waiting.wait(&peers, GPU, begin, why());
        let join = async {
            tokio::task::yield_now().await;
            let refused = wait().await;
            assert!(matches!(refused, Err(Failure::QueueFull(_))), "{refused:?}");
            // A node without the platform joins, and then one with it.
            for number in [1, 2] {
                nodes.store(number, Relaxed);
                assert!(peers.check());
                assert!(!peers.check());
                tokio::task::yield_now().await;
            }
        };
        let (first, second, ()) = tokio::join!(wait(), wait(), join);
        assert_eq!((first, second), (Ok(()), Ok(())));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(wait().await, Ok(()));
    }
}
