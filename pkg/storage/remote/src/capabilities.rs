//! The capabilities of a peer (REAPI `Capabilities`), requested when needed and then cached.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use reapi::v2::CacheCapabilities;
use tokio::time::Instant;
use tonic::Code;

use super::{methods::capabilities, peer::Peer};
use gorego_storage::{Compressor, DigestFunction, Error, Result};

/// The age up to which an answer is used: behind a balancer, a peer may restart unnoticed with another
/// configuration.
const KEPT: Duration = Duration::from_mins(5);
/// The content of a batch that fits into a message of gRPC's default limit, in bytes.
const MAX_BATCH: u64 = (4 << 20) - (64 << 10);

/// The capabilities of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCapabilities {
    /// The digest functions of its blobs, as far as gorego supports them.
    pub digest_functions: Vec<DigestFunction>,
    /// The sum of the blobs' sizes in one batch, in bytes.
    pub max_batch_bytes: u64,
    /// Set if it supports streams compressed with Zstandard.
    pub zstd_streams: bool,
    /// Set if it accepts blobs compressed with Zstandard in batches.
    pub zstd_batches: bool,
}

impl RemoteCapabilities {
    /// Returns the announced capabilities; those to expect of a peer that announces none.
    fn of(announced: Option<CacheCapabilities>) -> Self {
        let digest_functions = match &announced {
            None => DigestFunction::ALL.to_vec(),
            Some(cache) if cache.digest_functions.is_empty() => vec![DigestFunction::Sha256],
            Some(cache) => {
                let known = |value: &i32| DigestFunction::from_proto(*value).ok().flatten();
                cache.digest_functions.iter().filter_map(known).collect()
            }
        };
        let cache = announced.unwrap_or_default();
        let zstd = Compressor::Zstd.to_proto() as i32;
        let batch = u64::try_from(cache.max_batch_total_size_bytes).ok();
        let batch = batch.filter(|bytes| *bytes > 0).unwrap_or(u64::MAX);
        Self {
            digest_functions,
            // Larger batches would hold more memory than they save time.
            max_batch_bytes: batch.min(MAX_BATCH),
            zstd_streams: cache.supported_compressors.contains(&zstd),
            zstd_batches: cache.supported_batch_update_compressors.contains(&zstd),
        }
    }
}

/// The cached capabilities of a peer.
#[derive(Debug, Default)]
pub(super) struct CapabilityCache {
    last: Mutex<CachedAnswer>,
    request_lock: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct CachedAnswer {
    /// The last answer, its time, and the outages before it.
    answer: Option<(Arc<RemoteCapabilities>, Instant, u64)>,
    /// The last failure to get one, for the callers that waited for it.
    failed: Option<(Instant, Error)>,
}

impl CapabilityCache {
    /// Corrects and returns the last answer of a peer that supports less than it announced.
    pub(super) fn correct(
        &self,
        change: impl FnOnce(&mut RemoteCapabilities),
    ) -> Option<Arc<RemoteCapabilities>> {
        let mut last = self.last.lock();
        let (capabilities, ..) = last.answer.as_mut()?;
        change(Arc::make_mut(capabilities));
        Some(Arc::clone(capabilities))
    }

    pub(super) fn is_requested(&self) -> bool {
        self.request_lock.try_lock().is_err()
    }

    /// Returns the last answer, however old.
    pub(super) fn last(&self) -> Option<Arc<RemoteCapabilities>> {
        let last = self.last.lock();
        last.answer.as_ref().map(|(last, ..)| Arc::clone(last))
    }

    fn fresh(&self, outages: u64) -> Option<Arc<RemoteCapabilities>> {
        let last = self.last.lock();
        let (capabilities, at, outages_then) = last.answer.as_ref()?;
        let is_fresh = *outages_then == outages && at.elapsed() < KEPT;
        is_fresh.then(|| Arc::clone(capabilities))
    }
}

impl Peer {
    /// Returns the capabilities, requested again after an outage or some minutes. One caller requests them;
    /// the others meanwhile use the last answer. Fails at once where a call would.
    pub(super) async fn capabilities(&self) -> Result<Arc<RemoteCapabilities>> {
        let (came, known) = (Instant::now(), &self.known);
        if let Some(fresh) = known.fresh(self.breaker.outages()) {
            return Ok(fresh);
        }
        let error = |failure| self.error(&"requesting its capabilities", failure);
        self.breaker.check().map_err(error)?;
        let _request_lock = match (known.request_lock.try_lock(), known.last()) {
            (Ok(request_lock), _) => request_lock,
            (Err(_), Some(last)) => return Ok(last),
            (Err(_), None) => known.request_lock.lock().await,
        };
        if let Some(fresh) = known.fresh(self.breaker.outages()) {
            return Ok(fresh);
        }
        if let Some((at, error)) = &known.last.lock().failed
            && *at > came
        {
            return Err(error.clone());
        }
        let announced = match self.call(&capabilities(self.instance.as_str())).await {
            Ok(answer) => answer.cache_capabilities,
            Err(failure) if failure.code() == Some(Code::Unimplemented) => None,
            Err(failure) => {
                let error = error(failure);
                known.last.lock().failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        let capabilities = Arc::new(RemoteCapabilities::of(announced));
        let (answer, outages) = (Arc::clone(&capabilities), self.breaker.outages());
        known.last.lock().answer = Some((answer, Instant::now(), outages));
        Ok(capabilities)
    }

    /// Returns the capabilities if they include this function.
    pub(super) async fn offered(
        &self,
        function: DigestFunction,
    ) -> Result<Arc<RemoteCapabilities>> {
        match self.capabilities().await {
            Ok(capabilities) => self.check(&capabilities, function).map(|()| capabilities),
            Err(error) => Err(self.unless_lacking(function, error)),
        }
    }

    /// Replaces an outage by a refusal if the peer, by its last answer, lacks this function: such an
    /// operation must not be postponed until the outage ends.
    pub(super) fn unless_lacking(&self, function: DigestFunction, error: Error) -> Error {
        let last = self.known.last();
        let refusal = last.and_then(|last| self.check(&last, function).err());
        refusal
            .filter(|_| matches!(error, Error::Unavailable(_)))
            .unwrap_or(error)
    }

    fn check(&self, capabilities: &RemoteCapabilities, function: DigestFunction) -> Result<()> {
        let offered = &capabilities.digest_functions;
        if offered.contains(&function) {
            return Ok(());
        }
        let offered: Vec<_> = offered.iter().map(|f| f.name()).collect();
        let offered = offered.join(", ");
        Err(Error::Refused {
            peer: Arc::clone(&self.name),
            code: Code::InvalidArgument,
            message: format!("digest function {function} is not offered; offered are {offered}"),
            foreign: false,
        })
    }
}
