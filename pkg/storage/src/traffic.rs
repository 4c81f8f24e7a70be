//! Counts of the lookups of one tier, and of the bytes that it moved.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{Digest, Error, InUse, Result};

/// Counts of lookups by their outcomes.
#[derive(Debug, Default)]
pub struct Lookups {
    /// Lookups that found something.
    pub hits: AtomicU64,
    /// Lookups that found nothing.
    pub misses: AtomicU64,
    /// Lookups that found a result whose outputs are not all stored.
    pub incomplete: AtomicU64,
    /// Lookups that found nothing in the local tier while the backing cache did not answer.
    pub outage: AtomicU64,
    /// Lookups that failed.
    pub errors: AtomicU64,
}

impl Lookups {
    /// Counts the outcome of a lookup.
    pub fn record<T>(&self, found: &Result<T>) {
        match found {
            Ok(_) => add(&self.hits, 1),
            Err(error) => self.record_failure(error),
        }
    }

    /// Counts the outcome of a lookup of `digest` in a tier, unless the caller's `answer` has it repeated: what is absent
    /// under the first of two digest functions is looked up under the second.
    pub fn record_try<T, U>(&self, digest: &Digest, found: &Result<T>, answer: &Result<U>) {
        let is_absent = answer.as_ref().is_err_and(Error::is_absence);
        if !is_absent || digest.other().is_none() {
            self.record(found);
        }
    }

    fn record_failure(&self, error: &Error) {
        match error {
            // The caller's mistake.
            Error::OffsetPastEnd { .. } => {}
            Error::NotFound(_) | Error::NoResult(_) => add(&self.misses, 1),
            Error::Incomplete { .. } => add(&self.incomplete, 1),
            Error::Outage { .. } => add(&self.outage, 1),
            _ => add(&self.errors, 1),
        }
    }
}

/// The traffic of one tier since its start.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Reads of blobs.
    pub blobs: Lookups,
    /// Lookups of action results.
    pub results: Lookups,
    /// Blobs that were reported present before an upload.
    pub present: AtomicU64,
    /// Blobs that were reported missing before an upload.
    pub missing: AtomicU64,
    /// Bytes of blobs that were read.
    pub read: AtomicU64,
    /// Bytes of blobs that were written.
    pub written: AtomicU64,
}

impl Traffic {
    /// Counts bytes that were read.
    pub fn add_read(&self, bytes: u64) {
        add(&self.read, bytes);
    }

    /// Counts bytes that were written.
    pub fn add_written(&self, bytes: u64) {
        add(&self.written, bytes);
    }

    /// Counts the outcome of a lookup of `asked` blobs, of which `missing` are missing.
    pub fn add_presence(&self, asked: usize, missing: usize) {
        add(&self.missing, missing as u64);
        add(&self.present, asked.saturating_sub(missing) as u64);
    }

    /// Returns a guard that counts what is read of a file, in addition to `inner`.
    pub fn guard(self: &Arc<Self>, inner: Option<Box<dyn InUse>>) -> Box<dyn InUse> {
        let traffic = Arc::clone(self);
        Box::new(CountingGuard { traffic, inner })
    }
}

fn add(total: &AtomicU64, amount: u64) {
    total.fetch_add(amount, Relaxed);
}

struct CountingGuard {
    traffic: Arc<Traffic>,
    inner: Option<Box<dyn InUse>>,
}

impl InUse for CountingGuard {
    fn unreadable(&self) {
        if let Some(inner) = &self.inner {
            inner.unreadable();
        }
    }

    fn was_read(&self, bytes: u64) {
        self.traffic.add_read(bytes);
        if let Some(inner) = &self.inner {
            inner.was_read(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use futures::StreamExt as _;

    use super::*;
    use crate::{Blob, BlobFile, CHUNK_SIZE};

    #[test]
    fn a_lookup_that_is_repeated_under_the_second_digest_function_counts_once() {
        let lookups = Lookups::default();
        let first = Digest::parse(None, &"a".repeat(64), 1).unwrap();
        let second = first.other().unwrap();
        let missed = Err::<(), _>(Error::NotFound(first));
        lookups.record_try(&first, &missed, &missed);
        assert_eq!(lookups.misses.load(Relaxed), 0);
        lookups.record_try(&second, &missed, &missed);
        assert_eq!(lookups.misses.load(Relaxed), 1);
        // The backing cache has it, so that it is not looked up again.
        lookups.record_try(&first, &missed, &Ok(()));
        assert_eq!(lookups.misses.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn each_guard_of_a_file_counts_the_bytes_that_were_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![7; 4 * CHUNK_SIZE]).unwrap();
        let (local, client) = (Arc::<Traffic>::default(), Arc::<Traffic>::default());
        let mut chunks = Blob::File(BlobFile {
            file: Arc::new(fs::File::open(file.path()).unwrap()),
            path: PathBuf::new(),
            offset: 1,
            len: 4 * CHUNK_SIZE as u64 - 1,
            guard: Some(client.guard(Some(local.guard(None)))),
        })
        .into_chunks();
        let first = chunks.next().await.unwrap().unwrap();
        for traffic in [&local, &client] {
            assert_eq!(traffic.read.load(Relaxed), first.len() as u64);
        }
        drop(chunks);
        assert_eq!(client.read.load(Relaxed), CHUNK_SIZE as u64);
    }
}
