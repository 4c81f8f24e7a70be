//! The end of queued actions whose platform no node has any more.

use std::time::Duration;

use gorego_scheduler::Runner;
use reapi::v2::ExecuteResponse;
use tokio::time::sleep;

use crate::{Failure, Job, Options, PeerPlatforms, platform::fits, publish};

/// The period in which the platforms of queued actions are checked.
const PERIOD: Duration = Duration::from_secs(1);

/// Ends queued actions whose platform neither this node nor another meets.
pub(super) async fn end(
    runner: Runner<Job, ExecuteResponse>,
    options: Options,
    peers: PeerPlatforms,
) {
    loop {
        sleep(PERIOD).await;
        // This call also records the nodes while nothing is queued, so that later actions can wait for nodes that are
        // gone.
        peers.meets("");
        for platform in runner.queued_platforms() {
            let is_met = options.concurrency > 0 && fits(&options, &platform);
            if !is_met && !peers.meets(&platform) {
                let why = "no node that has the platform of the action has been there for a while";
                let failed = publish::failed(&Failure::Unmet(why.to_owned()));
                runner.end_queued(&platform, publish::outcome(failed));
            }
        }
    }
}
