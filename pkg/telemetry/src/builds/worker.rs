//! The background task that records calls, explains misses and saves builds.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::{spawn_blocking, yield_now},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Builds,
    event::{CallNames, Event, now_ms},
    explain::explain,
    history::History,
    known::KnownActions,
    records::BuildRecords,
};

/// The time in which calls are collected. The channel suffices for 200,000 calls a second.
const BATCH: Duration = Duration::from_millis(20);
/// The time from a change of a build to its saving.
const SAVE: Duration = Duration::from_secs(5);
/// The interval at which known actions and evictions are saved, if they changed, and builds that could not be saved.
const SAVE_RECORDS: Duration = Duration::from_mins(1);
/// The number of outputs whose known actions are copied at once.
const COPIED: usize = 512;
/// The most calls that are recorded before other tasks of the thread run.
const BURST: usize = 256;

/// The task of [`Builds`]. Run it for as long as calls are recorded.
#[derive(Debug)]
pub struct BuildsWorker {
    pub(crate) builds: Builds,
    pub(crate) events: mpsc::Receiver<Event>,
    /// The changes of known actions and of evictions that are saved.
    pub(crate) saved: (u64, u64),
    /// The names of what failed to be saved last, so that it is logged once.
    pub(crate) failing: HashSet<&'static str>,
}

impl BuildsWorker {
    /// Reads the builds of earlier runs, then records until `shutdown` is cancelled, and saves.
    pub async fn run(mut self, shutdown: CancellationToken) {
        if let Some(history) = self.builds.0.history.clone() {
            self.restore(history).await;
        }
        let builds = self.builds.clone();
        tokio::select! {
            () = self.record(&shutdown) => {}
            () = explain_all(&builds) => {}
        }
        self.apply_waiting().await;
        self.save().await;
        self.save_records().await;
    }

    async fn record(&mut self, shutdown: &CancellationToken) {
        let mut save_at: Option<Instant> = None;
        let mut records = interval(SAVE_RECORDS);
        records.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let builds = self.builds.clone();
        loop {
            let due = sleep_until(save_at.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = due, if save_at.is_some() => {
                    save_at = None;
                    self.save().await;
                }
                _ = records.tick() => {
                    self.save().await;
                    self.save_records().await;
                }
                Some(event) = self.events.recv() => {
                    self.apply(event).await;
                    self.apply_waiting().await;
                    // Otherwise each call would wake this task, which would slow the call down.
                    sleep(BATCH).await;
                    save_at.get_or_insert_with(|| Instant::now() + SAVE);
                }
                () = builds.0.explained.notified() => {
                    save_at.get_or_insert_with(|| Instant::now() + SAVE);
                }
            }
        }
    }

    /// Records the calls that wait, but not those that arrive meanwhile. Lets other tasks run in between.
    pub(crate) async fn apply_waiting(&mut self) {
        for number in 1..=self.events.len() {
            let Ok(event) = self.events.try_recv() else {
                return;
            };
            self.apply(event).await;
            if number % BURST == 0 {
                yield_now().await;
            }
        }
    }

    async fn apply(&self, mut event: Event) {
        let shared = &self.builds.0;
        event.redact(&shared.redaction);
        let call = CallNames::of(event.call.as_deref(), &shared.redaction);
        let id = &call.build.id;
        if shared.records.lock().is_on_disk_only(id)
            && let Some(history) = shared.history.clone()
        {
            // The build continues after its details left the memory, or after a restart.
            let read = id.clone();
            let read = spawn_blocking(move || history.build(&read)).await;
            let mut records = shared.records.lock();
            match read {
                Ok(Ok(Some(build))) => drop(records.restore(build)),
                _ => records.not_on_disk(id),
            }
        }
        let job = shared
            .records
            .lock()
            .apply(&event, &call, &shared.evictions);
        if let Some(job) = job {
            shared.jobs.add(job);
        }
    }

    async fn restore(&mut self, history: History) {
        let shared = Arc::clone(&self.builds.0);
        let restore = move || -> io::Result<()> {
            if let Some(encoded) = history.evictions()? {
                shared.evictions.restore(&encoded);
            }
            if let Some(known) = history.known()? {
                shared.records.lock().known = known;
            }
            history.load(|build| shared.records.lock().restore(build))
        };
        let restored = spawn_blocking(restore).await;
        if let Ok(Err(error)) = restored {
            tracing::warn!(%error, "failed to read earlier builds in builds/ of local_cache.dir");
        }
        let mut records = self.builds.0.records.lock();
        let known = std::mem::take(&mut records.known);
        records.known = known.restored(now_ms());
        records.recall();
        self.saved = (records.known.changes(), self.builds.0.evictions.changes());
    }

    /// Writes the builds that changed.
    async fn save(&mut self) {
        let Some(history) = self.builds.0.history.clone() else {
            return;
        };
        let dirty = self.builds.0.records.lock().take_dirty();
        if dirty.is_empty() {
            return;
        }
        let ids: Vec<_> = dirty.iter().map(|build| build.head.id.clone()).collect();
        let saved = spawn_blocking(move || history.save(&dirty)).await;
        let saved = saved.unwrap_or_else(|why| Err(io::Error::other(why)));
        if saved.is_err() {
            let mut records = self.builds.0.records.lock();
            for id in &ids {
                records.not_saved(id);
            }
        }
        self.report("recent builds", saved);
    }

    /// Writes the known actions and the evictions if they changed.
    async fn save_records(&mut self) {
        let shared = Arc::clone(&self.builds.0);
        let Some(history) = shared.history.clone() else {
            return;
        };
        let known = shared.records.lock().known.changes();
        let evictions = shared.evictions.changes();
        let saved = self.saved;
        let write = move || -> io::Result<Vec<String>> {
            let mut removed = Vec::new();
            if saved.0 != known {
                let encoded = serde_json::to_vec(&copy_known(&shared.records))?;
                removed = history.save_known(&encoded)?;
            }
            if saved.1 != evictions {
                removed.extend(history.save_evictions(&shared.evictions.encode())?);
            }
            Ok(removed)
        };
        let written = spawn_blocking(write).await;
        let written = written.unwrap_or_else(|why| Err(io::Error::other(why)));
        if written.is_ok() {
            self.saved = (known, evictions);
        }
        self.report("known actions and evictions", written);
    }

    /// Forgets the builds that were removed from the disk for what was saved. Logs the first of several failures, and
    /// their end.
    fn report(&mut self, what: &'static str, saved: io::Result<Vec<String>>) {
        match saved {
            Ok(removed) => {
                let mut records = self.builds.0.records.lock();
                for id in &removed {
                    records.not_on_disk(id);
                }
                drop(records);
                if self.failing.remove(what) {
                    tracing::info!("saved {what} again");
                }
            }
            Err(error) => {
                if self.failing.insert(what) {
                    tracing::warn!(
                        %error,
                        "failed to save {what}, which stay in memory; retrying each minute, so free space on the disk \
                         of local_cache.dir, or make its folder builds writable"
                    );
                }
            }
        }
    }
}

/// Copies what is saved of the known actions. Encoding them would hold the lock for too long, and so would one copy of
/// all: calls are recorded between two parts.
fn copy_known(records: &Mutex<BuildRecords>) -> KnownActions {
    let outputs = records.lock().known.outputs();
    let mut copy = KnownActions::default();
    for part in outputs.chunks(COPIED) {
        copy.copy(&records.lock().known, part);
    }
    copy
}

/// Explains misses one at a time, for as long as it is polled.
async fn explain_all(builds: &Builds) {
    let shared = &builds.0;
    loop {
        let job = shared.jobs.next().await;
        let explained = explain(&shared.contents, &shared.redaction, &shared.evictions, &job);
        let explanation = explained.await;
        shared.records.lock().explained(&job, explanation);
        shared.explained.notify_one();
    }
}
