//! Periodic work of the store: probes, repair, writing last uses back, and sync points.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{self, MissedTickBehavior};

use super::{
    disk::{Disk, now_ms},
    state::{Record, StoreState},
};
use crate::index::{DIRTY, SHARDS};
use gorego_storage::{Error, Result};

/// The interval at which the recorded usage is compared with the current one.
const TICK: Duration = Duration::from_secs(2);
/// Ticks between two sync points, and two rounds of writing last uses back.
const ROUND: u32 = 30;
/// Ticks between two probes of the directory.
const PROBE: u32 = 2;
/// The time by which a sync point is dated back, since file times are coarse and clocks are adjusted.
const MARGIN_MS: u64 = 2000;

/// Returns the most by which the usage may exceed the recorded one, in bytes.
pub(super) const fn slack(limit: u64) -> u64 {
    limit / 20
}

/// Returns the date of a sync point made now.
pub(super) fn dated() -> u64 {
    now_ms().saturating_sub(MARGIN_MS)
}

/// Runs until the store is closed.
pub(super) async fn run(disk: Arc<Disk>) {
    let mut ticks = time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round: u32 = 0;
    let mut last_failure = None;
    loop {
        tokio::select! {
            () = disk.cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        round = round.wrapping_add(1);
        // Other programs may be filling the disk.
        disk.room.press();
        let (at_round, at_probe) = (round.is_multiple_of(ROUND), round.is_multiple_of(PROBE));
        if !at_round && !at_probe && disk.state_to_record(&disk.record.lock()).is_none() {
            continue;
        }
        let work = move |disk: &Arc<Disk>| {
            if at_probe {
                disk.probe();
                disk.forget_cleared()?;
            }
            let recorded = disk.record_usage();
            if at_round {
                disk.measure_leases();
                disk.write_back()?;
                disk.sync_point(false)?;
            }
            recorded
        };
        let failure = disk.run(work).await.err().map(|error| error.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != last_failure) {
            tracing::warn!(error, "upkeep of the data directory failed; retrying");
        }
        last_failure = failure;
    }
}

impl Disk {
    /// Checks that the directory can be written to, and reports a change. Blocks.
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

    /// Returns the state with the current usage, if that changed significantly: the next start needs it
    /// before the scan.
    fn state_to_record(&self, record: &Record) -> Option<StoreState> {
        // Without uploads, which are found in their folder.
        let (used, limit) = (self.room.kept(), self.room.limit);
        let state = record.state;
        // If the clock was set back, files can be older than the sync point that they follow.
        let synced_ms = state.synced_ms.min(dated());
        let changed = used.abs_diff(state.used) > slack(limit) / 2 || synced_ms < state.synced_ms;
        (changed || !record.saved).then_some(StoreState {
            synced_ms,
            used,
            ..state
        })
    }

    /// Records the usage if it has changed. Blocks.
    fn record_usage(&self) -> Result<()> {
        let mut record = self.record.lock();
        if let Some(next) = self.state_to_record(&record) {
            next.save(&self.files)?;
            (record.state, record.saved) = (next, true);
        }
        Ok(())
    }

    /// Writes changed last uses to the access times of the files. Blocks.
    pub(super) fn write_back(&self) -> Result<()> {
        for part in 0..SHARDS {
            let used = self.index.pick(part, |entry| {
                let dirty = entry.has(DIRTY);
                entry.set(DIRTY, false);
                dirty.then(|| (entry.key(), entry.last_use()))
            });
            for (key, last_use) in used {
                if let Some(path) = self.locate(&key)? {
                    self.files.set_atime(&path, last_use)?;
                }
            }
        }
        Ok(())
    }

    /// Flushes the file system, and records that everything written before is synced. Does nothing while
    /// blobs are unverified, since they would be trusted from then on. Blocks.
    pub(super) fn sync_point(&self, clean: bool) -> Result<()> {
        let unscanned = self.unverified_from_ms < u64::MAX && !self.is_scanned();
        if unscanned || self.index.unverified() > 0 {
            return Ok(());
        }
        let written = self.written.load(Relaxed);
        if !clean && self.record.lock().synced == Some(written) {
            return Ok(());
        }
        let synced_ms = dated();
        self.files.sync_all()?;
        let mut record = self.record.lock();
        let next = StoreState {
            // Nothing was written after a clean end.
            clean: clean || record.state.clean,
            synced_ms,
            used: self.room.kept(),
        };
        next.save(&self.files)?;
        *record = Record {
            state: next,
            saved: true,
            synced: Some(written),
        };
        Ok(())
    }
}
