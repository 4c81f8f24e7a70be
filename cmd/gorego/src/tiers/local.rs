//! The local tier and its outbox of pending writes, from the configuration.

use std::{io, path::Path, sync::Arc};

use gorego_config::{self as config, Config, LocalCache};
use gorego_janitor::Marks;
use gorego_proxy::{Depth, Outbox};
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};

use super::Error;
use crate::memory::Parts;

/// Opens the local tier, unless an earlier version left pending writes there that only it can upload.
pub(super) async fn open_local(config: &Config, parts: &Parts) -> Result<Arc<LocalStore>, Error> {
    if let Some(log) = Outbox::old_journal(&config.local_cache.dir) {
        return Err(Error::Journal(log));
    }
    Ok(Arc::new(
        LocalStore::open(local_options(config, parts)).await?,
    ))
}

/// Opens the outbox, whose pending writes take at most half of the local tier.
pub(super) async fn outbox(config: &Config, local: &Arc<LocalStore>) -> Result<Outbox, Error> {
    // Pending writes are not evicted, and must leave room for other blobs.
    let half = config.local_cache.max_size_gb.bytes() / 2;
    let max_bytes = config.backing_cache.journal_max.bytes().min(half);
    Ok(Outbox::open(Arc::clone(local), max_bytes).await?)
}

/// Warns about pending writes of an earlier configuration that this one does not upload.
pub(super) fn warn_of_pending(depth: Depth, why: &'static str) {
    let Depth { entries, bytes, .. } = depth;
    if entries > 0 {
        tracing::warn!(
            entries,
            bytes,
            why,
            "writes of an outage stay in the outbox"
        );
    }
}

/// Warns of pending writes in the data directory of a process without a local tier. Another process
/// may use it.
pub(super) fn warn_of_unused(data: &Path) {
    if let Some(log) = Outbox::old_journal(data) {
        let log = log.display();
        tracing::warn!(%log, "holds pending writes; drain it with the previous version");
    }
    match Outbox::pending_in(data) {
        Ok(depth) => warn_of_pending(depth, "there is no local tier"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "cannot list the outbox"),
    }
}

fn local_options(config: &Config, parts: &Parts) -> LocalOptions {
    let cache = &config.local_cache;
    let max_bytes = cache.max_size_gb.bytes();
    LocalOptions {
        dir: cache.dir.clone(),
        max_bytes,
        wake_bytes: marks(cache).high_bytes(max_bytes),
        lease: cache.lease,
        upload_lease: cache.upload_lease,
        force_update_atime: config.force_update_atime,
        sync: match cache.sync {
            config::Sync::None => SyncMode::None,
            config::Sync::Data => SyncMode::Data,
            config::Sync::Full => SyncMode::Full,
        },
        scrub_period: Some(cache.scrub_period).filter(|period| !period.is_zero()),
        pieces: Some(parts.server.pieces.clone()),
    }
}

/// Returns the marks between which the janitor keeps the size of the local tier.
pub(super) fn marks(cache: &LocalCache) -> Marks {
    Marks {
        high: cache.high_watermark,
        low: cache.low_watermark,
        min_free: cache.min_free.bytes(),
    }
}
