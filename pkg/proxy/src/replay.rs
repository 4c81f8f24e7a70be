//! Brings the backing cache what was accepted while it was down.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    mem,
    panic::AssertUnwindSafe,
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream};
use gorego_storage::{ActionCacheExt as _, BlobStore, Digest, Error, Result};
use reapi::v2::ActionResult;
use tokio::time::sleep;

use crate::{
    journal::{Journal, Outcome, What, fingerprint},
    missing::{batches, by_function},
    outputs::{Upward, is_complete},
    store::Tiers,
};

/// How many entries are looked at together, and about how many bytes of blobs.
const TOGETHER: usize = 1000;
const BYTES: u64 = 256 << 20;
/// How many results go up at once.
const RESULTS: usize = 32;
/// How many blobs that were refused together go up alone at once, and of those that are not lost for it,
/// how many at all.
const ALONE: usize = 8;
const FEW: usize = 32;
/// How long to wait after a failure, at first and at most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Replays whatever is accepted, until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>) {
    let journal = Arc::clone(&tiers.journal);
    let mut depth = journal.depth();
    let mut wait = SHORTEST;
    let mut round = 0_usize;
    while depth.wait_for(|depth| depth.entries > 0).await.is_ok() {
        let replay = AssertUnwindSafe(tiers.replay(&journal, round));
        let replay = replay.catch_unwind().await;
        round = round.wrapping_add(1);
        let panicked = |_| Err(Error::Unavailable("it panicked".to_owned()));
        let progress = replay
            .unwrap_or_else(panicked)
            .unwrap_or_else(Progress::none);
        if progress.done {
            wait = SHORTEST;
        }
        let left = *journal.depth().borrow();
        if let Some(error) = progress.error {
            let (entries, bytes) = (left.entries, left.bytes);
            tracing::warn!(entries, bytes, %error, "writes wait for the backing cache");
            // Otherwise what is left was tried, and others may go on.
            if progress.down || !progress.done {
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST);
                continue;
            }
        }
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
    fn none(error: Error) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }

    /// What concerns an entry itself leaves it behind, so that nothing is held up by it.
    fn note(&mut self, number: u64, what: &What, outcome: Outcome) {
        match &outcome {
            Outcome::Done => self.done = true,
            Outcome::Never(error) => {
                tracing::error!(?what, %error, "what waited for the backing cache will not reach it");
            }
            Outcome::Again(error) | Outcome::Later(error) => {
                self.error.get_or_insert_with(|| error.clone());
            }
            Outcome::Untried => {}
        }
        self.outcomes.push((number, outcome));
    }

    async fn settle(&mut self, journal: &Arc<Journal>) -> Result<()> {
        journal.settle(mem::take(&mut self.outcomes)).await
    }
}

impl Tiers {
    /// Brings up what has waited longest: first the blobs, then the results.
    async fn replay(self: &Arc<Self>, journal: &Arc<Journal>, round: usize) -> Result<Progress> {
        let taken = journal.take(TOGETHER, BYTES).await?;
        let asked = round.checked_rem(taken.len());
        let Some((_, asked)) = asked.and_then(|at| taken.get(at)) else {
            return Err(Error::Unavailable("nothing can be taken now".to_owned()));
        };
        // Another one each time, in case that only this one is out of reach.
        if let Err(error) = self.reach(asked.digest()).await {
            let untried = taken.into_iter();
            let untried = untried.map(|(number, _)| (number, Outcome::Untried));
            journal.settle(untried.collect()).await?;
            return Err(error);
        }
        let (mut blobs, mut results) = (Vec::new(), Vec::new());
        for (number, what) in taken {
            match what {
                What::Blob(digest) => blobs.push((number, digest)),
                What::Action(..) => results.push((number, what)),
            }
        }
        let mut progress = Progress::default();
        self.replay_blobs(&blobs, &mut progress).await?;
        // Blobs that do not get there say nothing of the results of others.
        self.replay_results(results, &mut progress).await?;
        Ok(progress)
    }

    /// An error if the backing cache is down, or this proxy may not use it: that is no news of what
    /// waits, which keeps its order.
    async fn reach(&self, digest: &Digest) -> Result<()> {
        match self.backing.find_missing(slice::from_ref(digest)).await {
            Err(error) if error.is_general() => Err(error),
            _ => Ok(()),
        }
    }

    async fn replay_blobs(
        self: &Arc<Self>,
        blobs: &[(u64, Digest)],
        progress: &mut Progress,
    ) -> Result<()> {
        let numbers: HashMap<Digest, u64> =
            blobs.iter().map(|(at, digest)| (*digest, *at)).collect();
        let note = |progress: &mut Progress, digest: &Digest, pushed: Result<()>| {
            if let Some(number) = numbers.get(digest) {
                let outcome = pushed.map_or_else(Outcome::from, |()| Outcome::Done);
                progress.note(*number, &What::Blob(*digest), outcome);
            }
        };
        for digests in by_function(blobs.iter().map(|(_, digest)| *digest).collect()) {
            let missing = match self.backing.find_missing(&digests).await {
                Ok(missing) => missing,
                Err(error) if error.is_general() => {
                    for digest in &digests {
                        note(progress, digest, Err(error.clone()));
                    }
                    continue;
                }
                // Each is told of by itself.
                Err(_) => digests.clone(),
            };
            let pushed = self.push_up(missing.clone()).await;
            let mut pushed: HashMap<Digest, Result<()>> = pushed.into_iter().collect();
            let alone = to_push_alone(&missing, &pushed);
            let waits: HashSet<&Digest> = alone.iter().collect();
            for digest in digests.iter().filter(|digest| !waits.contains(digest)) {
                note(progress, digest, pushed.remove(digest).unwrap_or(Ok(())));
            }
            progress.settle(&self.journal).await?;
            let again = alone.iter().map(|digest| async move {
                let pushed = self.push_one(digest).await;
                (digest, pushed.map(drop))
            });
            let mut again = stream::iter(again.collect::<Vec<_>>()).buffer_unordered(ALONE);
            while let Some((digest, pushed)) = again.next().await {
                note(progress, digest, pushed);
            }
        }
        progress.settle(&self.journal).await
    }

    async fn replay_results(
        self: &Arc<Self>,
        results: Vec<(u64, What)>,
        progress: &mut Progress,
    ) -> Result<()> {
        let (in_a_row, down) = (AtomicUsize::new(0), AtomicBool::new(false));
        let replays = results.into_iter().map(|(number, what)| {
            let (in_a_row, down) = (&in_a_row, &down);
            async move {
                if down.load(Relaxed) {
                    return (number, what, Outcome::Untried);
                }
                let replayed = self.replay_result(number, &what).await;
                let outcome = replayed.err().unwrap_or(Outcome::Done);
                if !matches!(outcome, Outcome::Again(_)) {
                    in_a_row.store(0, Relaxed);
                } else if in_a_row.fetch_add(1, Relaxed) + 1 >= RESULTS {
                    // They may all name something that does not get there.
                    let reached = self.reach(what.digest()).await;
                    in_a_row.store(0, Relaxed);
                    down.fetch_or(reached.is_err(), Relaxed);
                }
                (number, what, outcome)
            }
        });
        let replays = stream::iter(replays.collect::<Vec<_>>());
        let mut replays = replays.buffer_unordered(RESULTS).ready_chunks(RESULTS);
        while let Some(replayed) = replays.next().await {
            for (number, what, outcome) in replayed {
                progress.note(number, &what, outcome);
            }
            progress.settle(&self.journal).await?;
        }
        progress.down = down.load(Relaxed);
        Ok(())
    }

    /// Puts a result there, unless there is a newer one. Where nobody can tell which one is newer,
    /// the one that is there stays, if it is of use.
    async fn replay_result(self: &Arc<Self>, number: u64, what: &What) -> Result<(), Outcome> {
        let What::Action(instance, action) = what else {
            return Ok(());
        };
        let (ours, replaces) = self.journal.result(number).await?;
        let up: Arc<dyn BlobStore> = Arc::new(Upward(Arc::clone(self)));
        let trees = &self.options.memory.bringing;
        let is_whole = match is_complete(action, &ours, up, trees).await {
            // On the way here, where it is not already.
            Err(damaged @ Error::Mismatch { .. }) => return Err(Outcome::Later(damaged)),
            is_whole => is_whole?,
        };
        if !is_whole {
            tracing::warn!(instance, %action, "a result whose outputs are gone is not replayed");
            return Ok(());
        }
        let _alone = self.journal.alone(instance, action).await;
        if !self.journal.has_action(instance, action) {
            // A later one went up meanwhile.
            return Ok(());
        }
        let mut useless = None;
        // Nothing that takes long comes between a look and the put.
        while let Some(theirs) = self
            .actions
            .find(instance, action)
            .await
            .map_err(theirs_fails)?
        {
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
            let is_whole = is_complete(action, &theirs, Arc::clone(&self.backing), trees);
            if is_whole.await.map_err(theirs_fails)? {
                return Ok(());
            }
            useless = Some(theirs);
        }
        self.actions.put(instance, action, ours).await?;
        self.journal.took();
        Ok(())
    }
}

/// What is wrong with theirs says nothing final of ours.
fn theirs_fails(error: Error) -> Outcome {
    match Outcome::from(error) {
        Outcome::Never(error) => Outcome::Later(error),
        outcome => outcome,
    }
}

/// Those that were refused together with others and may be taken alone: all that would be lost for it, and
/// a few of the others, since one of them may be what all were refused for.
fn to_push_alone(missing: &[Digest], pushed: &HashMap<Digest, Result<()>>) -> Vec<Digest> {
    let together = batches(missing.to_vec()).into_iter();
    let together = together.filter(|batch| batch.len() > 1).flatten();
    let mut few = 0..FEW;
    let is_to_be = |digest: &Digest| match pushed.get(digest) {
        Some(Err(error @ Error::Refused { .. })) => !error.may_pass() || few.next().is_some(),
        _ => false,
    };
    together.filter(is_to_be).collect()
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
