//! What the store does beside serving: writing last uses back, and sync points.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{self, MissedTickBehavior};

use super::{
    core::{Core, blocking, now_ms},
    state::State,
};
use crate::index::{Key, SHARDS};
use gorego_storage::{Error, Result};

/// How often the usage on record is compared with the real one.
const TICK: Duration = Duration::from_secs(2);
/// Ticks between two sync points, and two rounds of writing last uses back.
const ROUND: u32 = 30;
/// Ticks between two looks at whether the directory can be used.
const PROBE: u32 = 2;
/// How much earlier than the flush a sync point is dated: file times are coarse, clocks get set.
const MARGIN_MS: u64 = 2000;

/// The state on record, as it was last written.
pub(super) struct Recorded {
    state: Mutex<State>,
    /// Whether it is on the disk, too.
    saved: AtomicBool,
    /// What had been written at the last sync point; more than can be before the first.
    synced: AtomicU64,
}

impl Recorded {
    /// What was recorded when the store opened, and whether the disk had room for it.
    pub(super) fn new(state: State, saved: bool) -> Self {
        Self {
            state: Mutex::new(state),
            saved: AtomicBool::new(saved),
            synced: AtomicU64::new(u64::MAX),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By how much the usage of a store with this limit may exceed the one on record, in bytes.
pub(super) const fn slack(limit: u64) -> u64 {
    limit / 20
}

/// The time that a sync point made now is given.
pub(super) fn dated() -> u64 {
    now_ms().saturating_sub(MARGIN_MS)
}

/// Runs until the store is closed.
pub(super) async fn run(core: Arc<Core>, recorded: Arc<Recorded>) {
    let mut ticks = time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round: u32 = 0;
    let mut last_failure = None;
    loop {
        tokio::select! {
            () = core.cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        round = round.wrapping_add(1);
        // Others may be filling the disk, which is the janitor's business.
        core.room.press();
        let (at_round, at_probe) = (round.is_multiple_of(ROUND), round.is_multiple_of(PROBE));
        if !at_round && !at_probe && core.usage_to_record(&recorded).is_none() {
            continue;
        }
        let (core, recorded) = (Arc::clone(&core), Arc::clone(&recorded));
        let done = blocking(move || {
            if at_probe {
                core.probe();
                core.forget_cleared()?;
            }
            let recorded_usage = core.record_usage(&recorded);
            if at_round {
                core.write_back()?;
                core.sync_point(&recorded, false)?;
            }
            recorded_usage
        })
        .await;
        let failure = done.err().map(|error| error.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != last_failure) {
            tracing::warn!(
                error,
                "upkeep of the data directory failed; it will be tried again"
            );
        }
        last_failure = failure;
    }
}

impl Core {
    /// Finds out whether the directory can be written to, and says so when that changes. Blocks.
    fn probe(&self) {
        let probed = self.repair().and_then(|()| self.files.probe());
        let healthy = probed.as_ref().map_or_else(Error::is_no_space, |()| true);
        let changed = self
            .healthy
            .send_if_modified(|was| std::mem::replace(was, healthy) != healthy);
        match probed {
            Err(error) if changed && !healthy => tracing::error!(%error, "data directory unusable"),
            _ if changed => tracing::info!("data directory usable again"),
            _ => {}
        }
    }

    /// The state with the present usage, when that has changed by more than a little, so that a restart
    /// knows it before it has looked.
    fn usage_to_record(&self, recorded: &Recorded) -> Option<State> {
        // Without uploads, broken off or under way: those are found in their folder.
        let (used, limit) = (self.room.kept(), self.room.limit());
        let state = *recorded.state();
        // Where the clock was set back, files can be older than the sync point that they come after.
        let synced_ms = state.synced_ms.min(dated());
        let changed = used.abs_diff(state.used) > slack(limit) / 2 || synced_ms < state.synced_ms;
        let next = State {
            synced_ms,
            used,
            ..state
        };
        (changed || !recorded.saved.load(Relaxed)).then_some(next)
    }

    /// Writes the usage down when it has changed. Blocks.
    fn record_usage(&self, recorded: &Recorded) -> Result<()> {
        if let Some(next) = self.usage_to_record(recorded) {
            next.save(&self.files)?;
            *recorded.state() = next;
            recorded.saved.store(true, Relaxed);
        }
        Ok(())
    }

    /// Writes the last uses that changed to the files' access times: those of one part of the index
    /// after another, and each part once, however fast they change again. Blocks.
    pub(super) fn write_back(&self) -> Result<()> {
        for part in 0..SHARDS {
            let mut used: Vec<(Key, u64)> = Vec::new();
            self.index.visit_part(part, |_, entry| {
                if entry.is_dirty() {
                    entry.set_dirty(false);
                    used.push((entry.key(), entry.last_use()));
                }
            });
            for (key, last_use) in used {
                if let Some(path) = self.locate(&key)? {
                    self.files.set_atime(&path, last_use)?;
                }
            }
        }
        Ok(())
    }

    /// Flushes the file system, and notes that what was written before is whole. Not while
    /// something is in doubt: that would be trusted from then on. Blocks.
    pub(super) fn sync_point(&self, recorded: &Recorded, clean: bool) -> Result<()> {
        let unseen = self.doubt_from_ms < u64::MAX && !self.is_scanned();
        if unseen || self.index.in_doubt() > 0 {
            return Ok(());
        }
        let written = self.written.load(Relaxed);
        if !clean && written == recorded.synced.load(Relaxed) {
            return Ok(());
        }
        let synced_ms = dated();
        self.files.sync_all()?;
        let mut state = recorded.state();
        let used = if clean { self.room.kept() } else { state.used };
        let next = State {
            // Nothing was written after a clean end, whoever is slow to note an earlier state.
            clean: clean || state.clean,
            synced_ms,
            used,
        };
        next.save(&self.files)?;
        *state = next;
        recorded.synced.store(written, Relaxed);
        Ok(())
    }
}
