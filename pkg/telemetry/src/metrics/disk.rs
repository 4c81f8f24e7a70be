//! Metrics of the local tier.

use std::fmt;

use gorego_storage::{DiskReport, ScrubReport};

use super::encode::{Encoder, Metric};

const USED: Metric = Metric::bytes(
    "disk",
    "Disk space that the local tier uses: blobs, action results, folders, and uploads.",
);
const LIMIT: Metric = Metric::bytes("disk_limit", "The limit of the local tier.");
const FREE: Metric = Metric::bytes("disk_free", "Free space of the local tier's file system.");
const BLOBS: Metric = Metric::new("disk_blobs", "Blobs in the local tier.");
const RESULTS: Metric = Metric::new("disk_results", "Action results in the local tier.");
const UNVERIFIED: Metric = Metric::new(
    "disk_unverified_blobs",
    "Blobs that are hashed before their next use, because the last run ended without a shutdown.",
);
const EVICTED_BLOBS: Metric = Metric::new("evicted_blobs", "Blobs evicted from the local tier.");
const EVICTED_RESULTS: Metric = Metric::new(
    "evicted_results",
    "Action results evicted from the local tier.",
);
const EVICTED: Metric = Metric::bytes("evicted", "Disk space freed by eviction.");
const AGE: Metric = Metric::seconds(
    "eviction_age",
    "The time from the last use of the blob or result that was evicted last to its eviction.",
);
const LEASES: Metric = Metric::bytes(
    "lease",
    "Disk space of blobs and results that are leased, so that only uploads without room may evict \
     them. Measured every minute.",
);
const LEASES_BROKEN: Metric = Metric::new(
    "lease_broken",
    "Leased blobs and results that were evicted for uploads without room.",
);
const QUARANTINED: Metric = Metric::new(
    "quarantined",
    "Corrupt or unreadable files of blobs and results, moved to quarantine.",
);
const LOST: Metric = Metric::new(
    "lost",
    "Files of blobs and results that were missing or had another size.",
);
const SCAN_RUNNING: Metric = Metric::new(
    "scan_running",
    "1 while the data directory is scanned after the start, else 0.",
);
const SCANNED: Metric = Metric::new(
    "scan_files",
    "Files that the scan after the start has found.",
);
const SCRUB_FILES: Metric = Metric::new("scrub_files", "Files that scrubbing has hashed.");
const SCRUB_BYTES: Metric = Metric::bytes("scrub", "Bytes that scrubbing has hashed.");
const SCRUB_START: Metric = Metric::seconds(
    "scrub_pass_start_time",
    "The start of the current pass of scrubbing over all files, in Unix time.",
);
const IDLE: Metric = Metric::bytes(
    "partial_upload",
    "Disk space of interrupted uploads and quarantined files.",
);
const IDLE_REMOVED: Metric = Metric::new(
    "partial_uploads_removed",
    "Interrupted uploads and quarantined files that expired or were removed for their room.",
);
const UPLOADS: Metric = Metric::new(
    "inflight_uploads",
    "Uploads that are being written to the local tier.",
);
const WAITING: Metric = Metric::new(
    "inflight_uploads_waiting",
    "Uploads that wait for room in the local tier.",
);

pub(super) fn encode(mut encoder: Encoder<'_>, now: &DiskReport) -> fmt::Result {
    let usage = &now.usage;
    encoder.gauge(USED, usage.used)?;
    encoder.gauge(LIMIT, usage.limit)?;
    if let Some(free) = usage.free_on_disk {
        encoder.gauge(FREE, free)?;
    }
    encoder.gauge(BLOBS, now.blobs)?;
    encoder.gauge(RESULTS, now.results)?;
    encoder.gauge(UNVERIFIED, now.unverified)?;
    encoder.gauge(SCAN_RUNNING, u64::from(usage.scanning))?;
    encoder.counter(SCANNED, now.scanned)?;
    encoder.counter(QUARANTINED, now.quarantined)?;
    encoder.counter(LOST, now.lost)?;
    encoder.gauge(UPLOADS, now.uploads)?;
    encoder.gauge(WAITING, now.waiting)?;
    encoder.gauge(IDLE, usage.idle_uploads)?;
    encoder.counter(IDLE_REMOVED, now.idle_removed)?;
    evictions(&mut encoder, now)?;
    now.scrub
        .map_or(Ok(()), |scrub| self::scrub(&mut encoder, &scrub))
}

fn evictions(encoder: &mut Encoder<'_>, now: &DiskReport) -> fmt::Result {
    encoder.counter(EVICTED_BLOBS, now.evicted_blobs)?;
    encoder.counter(EVICTED_RESULTS, now.evicted_results)?;
    encoder.counter(EVICTED, now.evicted_bytes)?;
    if let Some(age) = now.eviction_age {
        encoder.gauge(AGE, age.as_secs_f64())?;
    }
    if let Some(leased) = now.leased {
        encoder.gauge(LEASES, leased)?;
    }
    encoder.counter(LEASES_BROKEN, now.leases_broken)
}

fn scrub(encoder: &mut Encoder<'_>, scrub: &ScrubReport) -> fmt::Result {
    encoder.counter(SCRUB_FILES, scrub.files)?;
    encoder.counter(SCRUB_BYTES, scrub.bytes)?;
    encoder.gauge(SCRUB_START, scrub.pass_start.as_secs_f64())
}
