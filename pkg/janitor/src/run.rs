//! The janitor's loop: wakes, evicts in passes, and rests when nothing can be evicted.

mod pass;

use std::{sync::Arc, time::Duration};

use gorego_storage::{Evictable, EvictionTotal, Resource, Usage};
use tokio::{
    sync::watch,
    task,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{Marks, Totals, demand::Demand, shortage::Shortage, totals::add};
use pass::{Pass, PassEnd};

/// The pause after a pass that found nothing more to evict: each pass visits every entry, and only
/// leases that end change its outcome.
const REST: Duration = Duration::from_secs(5);
/// The pause while uploads wait, short so that they are refused soon.
const SHORT_REST: Duration = Duration::from_millis(100);

/// Options of a janitor.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The marks at which eviction starts and stops.
    pub marks: Marks,
    /// The interval between checks for free disk space and expired uploads.
    pub interval: Duration,
    /// The age at which idle partial uploads are removed.
    pub upload_expiry: Duration,
}

/// Keeps one store within its limits.
#[derive(Debug)]
pub struct Janitor {
    store: Arc<dyn Evictable>,
    options: Options,
    totals: watch::Sender<Totals>,
}

/// The times until which passes pause.
#[derive(Debug, Default)]
struct Pauses {
    /// For a soft demand.
    soft: Option<Instant>,
    /// For a hard demand.
    hard: Option<Instant>,
}

impl Janitor {
    /// Creates a janitor for `store`. It does nothing before [`Self::run`].
    pub fn new(store: Arc<dyn Evictable>, options: Options) -> Self {
        Self {
            store,
            options,
            totals: watch::Sender::default(),
        }
    }

    /// Returns the totals of this janitor, which change while it runs.
    pub fn totals(&self) -> watch::Receiver<Totals> {
        self.totals.subscribe()
    }

    /// Runs until `shutdown` is cancelled and the current step is done. Failures are logged.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut timer = time::interval(self.options.interval.max(SHORT_REST));
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pauses = Pauses::default();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = timer.tick() => self.remove_expired_uploads().await,
                () = self.store.pressure() => {}
            }
            self.relieve(&mut pauses, &shutdown).await;
        }
    }

    /// Returns the file system's shortage of the resources for which eviction is not paused.
    fn shortage(&self, usage: &Usage) -> Shortage {
        let backoff = self.store.backoff();
        Shortage::of(usage, &self.options.marks)
            .only(|resource| !backoff.is_paused(resource, usage))
    }

    /// Brings the store back within its marks, as far as possible.
    async fn relieve(&self, pauses: &mut Pauses, shutdown: &CancellationToken) {
        let usage = self.store.usage();
        if usage.idle_uploads > usage.limit / 10 {
            self.trim_uploads().await;
        }
        let shortage = self.shortage(&usage);
        let demand = Demand::of(&self.store.usage(), &self.options.marks, shortage.lacking);
        if demand.total().is_zero() {
            return;
        }
        let is_hard = !demand.hard.is_zero();
        let until = if is_hard { pauses.hard } else { pauses.soft };
        if let Some(until) = until.filter(|until| *until > Instant::now()) {
            if !is_hard {
                return;
            }
            let rested = shutdown.run_until_cancelled(time::sleep_until(until)).await;
            if rested.is_none() {
                return;
            }
        }
        (pauses.soft, pauses.hard) = (None, None);
        loop {
            let shortage = self.shortage(&self.store.usage());
            let mut pass = Pass::new(self, shortage);
            let end = pass.run(shutdown).await;
            pass.log(end);
            let usage = self.store.usage();
            for resource in [Resource::Bytes, Resource::Files] {
                if shortage.is_futile(resource, &usage) {
                    self.store.backoff().record(resource, &usage);
                }
            }
            if end != PassEnd::Stuck {
                return;
            }
            pauses.soft = Some(Instant::now() + REST);
            if !self.store.usage().is_wanted() {
                return;
            }
            // A pass without a hard demand breaks no leases: if an upload began to wait at its end,
            // another pass follows.
            if pass.hard {
                pauses.hard = Some(Instant::now() + SHORT_REST);
                self.store.room_made(true);
                return;
            }
        }
    }

    /// Removes partial uploads that are too old, and the oldest of those that hold too much.
    async fn remove_expired_uploads(&self) {
        let age = self.options.upload_expiry;
        let removed = self
            .remove_uploads(move |store| store.remove_idle_uploads(age))
            .await;
        if removed.count > 0 {
            let EvictionTotal { count, bytes } = removed;
            tracing::info!(removed = count, bytes, "removed expired uploads");
        }
        self.trim_uploads().await;
    }

    async fn trim_uploads(&self) {
        let removed = self.remove_uploads(Evictable::trim_idle_uploads).await;
        self.totals
            .send_modify(|totals| add(&mut totals.uploads_dropped, removed));
    }

    /// Removes idle uploads and wakes the uploads that wait for room.
    async fn remove_uploads(
        &self,
        remove: impl FnOnce(&dyn Evictable) -> gorego_storage::Result<EvictionTotal> + Send + 'static,
    ) -> EvictionTotal {
        let removed = self
            .blocking(remove)
            .await
            .unwrap_or(Ok(EvictionTotal::default()));
        let removed = removed.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to remove idle uploads");
            EvictionTotal::default()
        });
        if removed.count > 0 {
            self.store.room_made(false);
        }
        removed
    }

    /// Runs blocking work on the store. Returns `None` if it panicked.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Evictable) -> T + Send + 'static,
    ) -> Option<T> {
        let store = Arc::clone(&self.store);
        let done = task::spawn_blocking(move || work(&*store)).await;
        done.inspect_err(|error| tracing::error!(%error, "step of the janitor panicked"))
            .ok()
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
