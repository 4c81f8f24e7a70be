//! Brings the backing cache what was accepted while it was down.

use std::{
    cmp::Ordering,
    collections::HashMap,
    mem,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream};
use gorego_storage::{BlobStore, Digest, Error, Result};
use reapi::v2::ActionResult;
use tokio::time::sleep;

use crate::{
    journal::{Journal, Outcome, What, fingerprint},
    missing::by_function,
    outputs::{Upward, is_complete},
    store::Tiers,
};

/// How many entries are looked at together, and about how many bytes of blobs.
const TOGETHER: usize = 1000;
const BYTES: u64 = 256 << 20;
/// How many results go up at once.
const RESULTS: usize = 32;
/// How long to wait after a failure, at first and at most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Replays whatever is accepted, until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>) {
    let journal = Arc::clone(&tiers.journal);
    let mut depth = journal.depth();
    let mut wait = SHORTEST;
    while depth.wait_for(|depth| depth.entries > 0).await.is_ok() {
        let round = AssertUnwindSafe(tiers.replay(&journal))
            .catch_unwind()
            .await;
        let round = round.unwrap_or_else(|_| Err(Error::Unavailable("it panicked".to_owned())));
        let left = *journal.depth().borrow();
        let error = match round {
            // What is left was tried, and others may go on.
            Ok(progress) if progress.done && !progress.down => None,
            Ok(progress) => progress.error,
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            let (entries, bytes) = (left.entries, left.bytes);
            tracing::warn!(entries, bytes, %error, "writes wait for the backing cache");
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
            continue;
        }
        wait = SHORTEST;
        if left.entries == 0 {
            tracing::info!("the backing cache has all that waited for it");
        }
    }
}

/// What became of entries so far, and why some of them still wait.
#[derive(Default)]
struct Progress {
    outcomes: Vec<(u64, Outcome)>,
    error: Option<Error>,
    /// Whether anything got there.
    done: bool,
    /// Whether some were not tried, since others found nobody there.
    down: bool,
}

impl Progress {
    /// What concerns an entry itself leaves it behind, so that nothing is held up by it.
    fn note(&mut self, number: u64, what: &What, result: Result<()>) {
        let outcome = match &result {
            Ok(()) => {
                self.done = true;
                Outcome::Done
            }
            Err(Error::Unavailable(_)) => Outcome::Again,
            Err(error) if error.may_pass() => Outcome::Later,
            Err(error) => {
                tracing::error!(?what, %error, "what waited for the backing cache will not reach it");
                Outcome::Done
            }
        };
        self.outcomes.push((number, outcome));
        if outcome != Outcome::Done && self.error.is_none() {
            self.error = result.err();
        }
    }
}

impl Tiers {
    /// Brings up what has waited longest: first the blobs, then the results.
    async fn replay(self: &Arc<Self>, journal: &Arc<Journal>) -> Result<Progress> {
        let (mut blobs, mut results) = (Vec::new(), Vec::new());
        let taken = journal.take(TOGETHER, BYTES).await?;
        if taken.is_empty() {
            return Err(Error::Unavailable("nothing can be taken now".to_owned()));
        }
        for (number, what) in taken {
            match what {
                What::Blob(digest) => blobs.push((number, digest)),
                What::Action(..) => results.push((number, what)),
            }
        }
        let mut progress = Progress::default();
        for (number, digest, result) in self.replay_blobs(&blobs).await {
            progress.note(number, &What::Blob(digest), result);
        }
        journal.settle(mem::take(&mut progress.outcomes)).await?;
        // Blobs that do not get there say nothing of the results of others.
        let down = AtomicBool::new(false);
        let replays = results.into_iter().map(|(number, what)| {
            let down = &down;
            async move {
                if down.load(Relaxed) {
                    return (number, what, None);
                }
                let replayed = self.replay_result(number, &what).await;
                down.fetch_or(matches!(replayed, Err(Error::Unavailable(_))), Relaxed);
                (number, what, Some(replayed))
            }
        });
        let replays = stream::iter(replays.collect::<Vec<_>>());
        let mut replays = replays.buffer_unordered(RESULTS).ready_chunks(RESULTS);
        while let Some(replayed) = replays.next().await {
            for (number, what, result) in replayed {
                match result {
                    Some(result) => progress.note(number, &what, result),
                    None => progress.outcomes.push((number, Outcome::Untried)),
                }
            }
            journal.settle(mem::take(&mut progress.outcomes)).await?;
        }
        progress.down = down.load(Relaxed);
        Ok(progress)
    }

    async fn replay_blobs(
        self: &Arc<Self>,
        blobs: &[(u64, Digest)],
    ) -> Vec<(u64, Digest, Result<()>)> {
        let digests = blobs.iter().map(|(_, digest)| *digest).collect();
        let mut failed = HashMap::new();
        for digests in by_function(digests) {
            let missing = match self.backing.find_missing(&digests).await {
                Ok(missing) => missing,
                Err(error) if error.may_pass() => {
                    failed.extend(digests.iter().map(|digest| (*digest, error.clone())));
                    continue;
                }
                // Each is told of by itself.
                Err(_) => digests,
            };
            for (digest, pushed) in self.push_up(missing).await {
                if let Err(error) = self.once_more(&digest, pushed).await {
                    failed.insert(digest, error);
                }
            }
        }
        let result = |(number, digest): &(u64, Digest)| {
            let result = failed.remove(digest).map_or(Ok(()), Err);
            (*number, *digest, result)
        };
        blobs.iter().map(result).collect()
    }

    /// What was refused with others may be taken alone.
    async fn once_more(self: &Arc<Self>, digest: &Digest, pushed: Result<()>) -> Result<()> {
        match pushed {
            Err(Error::Refused { .. }) => self.push_one(digest).await.map(drop),
            pushed => pushed,
        }
    }

    /// Puts a result there, unless there is a newer one. Where nobody can tell which one is newer,
    /// the one that is there stays, if it is of use.
    async fn replay_result(self: &Arc<Self>, number: u64, what: &What) -> Result<()> {
        let What::Action(instance, action) = what else {
            return Ok(());
        };
        let (ours, replaces) = self.journal.result(number).await?;
        let up: Arc<dyn BlobStore> = Arc::new(Upward(Arc::clone(self)));
        let trees = &self.trees.bringing;
        if !is_complete(action, ours.clone(), up, trees).await? {
            tracing::warn!(instance, %action, "a result whose outputs are gone is not replayed");
            return Ok(());
        }
        let mut useless = None;
        // Nothing that takes long comes between a look and the put.
        while let Some(theirs) = self.actions.get(instance, action).await? {
            if theirs == ours {
                return Ok(());
            }
            let is_newer = match by_end(&ours, &theirs) {
                Some(Ordering::Greater) => true,
                Some(Ordering::Less) => false,
                Some(Ordering::Equal) | None => replaces.contains(&fingerprint(&theirs)),
            };
            if is_newer || useless.as_ref() == Some(&theirs) {
                break;
            }
            if is_complete(action, theirs.clone(), Arc::clone(&self.backing), trees).await? {
                return Ok(());
            }
            useless = Some(theirs);
        }
        self.actions.put(instance, action, ours).await
    }
}

/// Which of the two actions ended later, as far as both tell.
fn by_end(ours: &ActionResult, theirs: &ActionResult) -> Option<Ordering> {
    let ended = |result: &ActionResult| {
        let metadata = result.execution_metadata.as_ref()?;
        let at = metadata.execution_completed_timestamp.as_ref()?;
        Some((at.seconds, at.nanos))
    };
    Some(ended(ours)?.cmp(&ended(theirs)?))
}
