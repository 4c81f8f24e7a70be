//! The janitor at work: when it wakes, how it goes about a plan, and when it rests.

mod pass;

use std::{sync::Arc, time::Duration};

use gorego_storage::{Evictable, Removed, Resource, Usage};
use tokio::{
    task,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{Counters, Demand, Marks, shortage::Shortage};
use pass::{End, Pass};

/// How long to leave a store alone that is above its mark and has nothing to evict: each attempt
/// looks at every entry, and only expiring leases change the answer.
const REST: Duration = Duration::from_secs(5);
/// The same while uploads wait, which would otherwise be refused late.
const SHORT_REST: Duration = Duration::from_millis(100);

/// How a janitor behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where eviction starts and stops.
    pub marks: Marks,
    /// How often to look at the file system's free space and for expired uploads.
    pub interval: Duration,
    /// Partial uploads untouched for this long are removed.
    pub upload_expiry: Duration,
}

/// Keeps one store within its limits.
#[derive(Debug)]
pub struct Janitor {
    store: Arc<dyn Evictable>,
    options: Options,
    counters: Arc<Counters>,
}

/// Until when a store with nothing to evict is left alone.
#[derive(Debug, Default)]
struct Rest {
    /// As far as its marks go.
    soft: Option<Instant>,
    /// As far as uploads wait.
    hard: Option<Instant>,
}

impl Janitor {
    /// A janitor for `store`; it does nothing before [`Self::run`].
    pub fn new(store: Arc<dyn Evictable>, options: Options) -> Self {
        Self {
            store,
            options,
            counters: Arc::default(),
        }
    }

    /// What it did so far.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Works until `shutdown`; ends after the step under way. Failures are logged and stop
    /// nothing.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut timer = time::interval(self.options.interval.max(SHORT_REST));
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rest = Rest::default();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = timer.tick() => self.remove_expired_uploads().await,
                () = self.store.pressure() => {}
            }
            self.relieve(&mut rest, &shutdown).await;
        }
    }

    /// Returns the file system's shortage, without that which eviction is known not to help against.
    fn shortage(&self, usage: &Usage) -> Shortage {
        let futile = self.store.futile();
        Shortage::of(usage, &self.options.marks).only(|resource| !futile.holds(resource, usage))
    }

    /// Brings the store back within its marks, as far as possible.
    async fn relieve(&self, rest: &mut Rest, shutdown: &CancellationToken) {
        let usage = self.store.usage();
        if usage.idle_uploads > usage.limit / 10 {
            let trim = |store: &dyn Evictable| store.trim_idle_uploads();
            self.counters
                .uploads_dropped(self.remove_uploads(trim).await);
        }
        let shortage = self.shortage(&usage);
        let demand = Demand::of(&self.store.usage(), &self.options.marks, shortage.lacking());
        if demand.total().is_zero() {
            return;
        }
        let is_hard = !demand.hard.is_zero();
        let until = if is_hard { rest.hard } else { rest.soft };
        if let Some(until) = until.filter(|until| *until > Instant::now()) {
            if !is_hard {
                return;
            }
            let rested = shutdown.run_until_cancelled(time::sleep_until(until)).await;
            if rested.is_none() {
                return;
            }
        }
        (rest.soft, rest.hard) = (None, None);
        loop {
            let shortage = self.shortage(&self.store.usage());
            let mut pass = Pass::new(self, shortage);
            let end = pass.run(shutdown).await;
            pass.log(end);
            let usage = self.store.usage();
            for resource in [Resource::Bytes, Resource::Files] {
                if shortage.is_futile(resource, &usage) {
                    self.store.futile().record(resource, &usage);
                }
            }
            if end != End::Stuck {
                return;
            }
            rest.soft = Some(Instant::now() + REST);
            if !self.store.usage().is_wanted() {
                return;
            }
            // An upload that came to wait at the end of the pass is owed a look at what only
            // waiting uploads may have.
            if pass.was_hard() {
                rest.hard = Some(Instant::now() + SHORT_REST);
                self.store.room_made(true);
                return;
            }
        }
    }

    /// Removes what is left of uploads for too long, and what is beyond their number.
    async fn remove_expired_uploads(&self) {
        let age = self.options.upload_expiry;
        let expired = move |store: &dyn Evictable| store.remove_idle_uploads(age);
        let removed = self.remove_uploads(expired).await;
        if removed.count > 0 {
            self.counters.uploads_expired(removed);
            tracing::info!(
                removed = removed.count,
                bytes = removed.bytes,
                "removed expired uploads"
            );
        }
        let trim = |store: &dyn Evictable| store.trim_idle_uploads();
        self.counters
            .uploads_dropped(self.remove_uploads(trim).await);
    }

    /// Removes idle uploads, and tells those who wait of it.
    async fn remove_uploads(
        &self,
        remove: impl FnOnce(&dyn Evictable) -> gorego_storage::Result<Removed> + Send + 'static,
    ) -> Removed {
        match self
            .blocking(remove)
            .await
            .unwrap_or(Ok(Removed::default()))
        {
            Ok(removed) => {
                if removed.count > 0 {
                    self.store.room_made(false);
                }
                removed
            }
            Err(error) => {
                tracing::warn!(%error, "could not remove idle uploads");
                Removed::default()
            }
        }
    }

    /// Does something with the store that may block. `None` when the store panicked.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Evictable) -> T + Send + 'static,
    ) -> Option<T> {
        let store = Arc::clone(&self.store);
        let done = task::spawn_blocking(move || work(&*store)).await;
        done.inspect_err(|error| tracing::error!(%error, "a step of the janitor failed"))
            .ok()
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
