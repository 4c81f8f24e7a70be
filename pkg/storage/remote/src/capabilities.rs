//! The capabilities of a peer (REAPI `Capabilities`), requested when needed and then cached.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use reapi::v2::{self, ServerCapabilities};
use tokio::time::Instant;
use tonic::Code;

use super::{failure::Failure, methods::capabilities, peer::Peer};
use gorego_storage::{Compressor, DigestFunction, Error, InstanceName, Result};

/// The age up to which an answer is used: behind a balancer, a peer may restart unnoticed with another
/// configuration.
const KEPT: Duration = Duration::from_mins(5);
/// The largest message that gRPC accepts by default, in bytes.
const MESSAGE: u64 = 4 << 20;
/// The bytes of a batch beside the content.
const FRAMING: u64 = 64 << 10;

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
    /// Returns the capabilities of a peer that does not announce them.
    fn unknown() -> Self {
        Self {
            digest_functions: DigestFunction::ALL.to_vec(),
            max_batch_bytes: MESSAGE - FRAMING,
            zstd_streams: false,
            zstd_batches: false,
        }
    }

    fn of(answer: &ServerCapabilities) -> Self {
        let Some(cache) = &answer.cache_capabilities else {
            return Self::unknown();
        };
        let named: Vec<_> = cache
            .digest_functions
            .iter()
            .filter_map(|value| DigestFunction::from_proto(*value).ok().flatten())
            .collect();
        let digest_functions = if cache.digest_functions.is_empty() {
            vec![DigestFunction::Sha256]
        } else {
            named
        };
        let zstd = Compressor::Zstd.to_proto() as i32;
        let batch = u64::try_from(cache.max_batch_total_size_bytes).unwrap_or_default();
        Self {
            digest_functions,
            // Larger batches would hold more memory than they save time.
            max_batch_bytes: match batch {
                0 => MESSAGE - FRAMING,
                some => some.min(MESSAGE - FRAMING),
            },
            zstd_streams: cache.supported_compressors.contains(&zstd),
            zstd_batches: cache.supported_batch_update_compressors.contains(&zstd),
        }
    }

    /// Refuses a digest function that the peer does not support.
    pub(super) fn check(&self, peer: &Peer, function: DigestFunction) -> Result<()> {
        if self.digest_functions.contains(&function) {
            return Ok(());
        }
        let offered: Vec<_> = self.digest_functions.iter().map(|f| f.name()).collect();
        Err(Error::Refused {
            peer: Arc::clone(&peer.name),
            code: Code::InvalidArgument,
            message: format!(
                "digest function {function} is not offered; offered are {}",
                offered.join(", ")
            ),
            foreign: false,
        })
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
    capabilities: Option<Arc<RemoteCapabilities>>,
    /// The time of the answer, and the outages before it.
    answered: Option<(Instant, u64)>,
    /// The last failure to get one, for the callers that waited for it.
    failed: Option<(Instant, Error)>,
}

impl CapabilityCache {
    /// Returns the peer's capabilities, requested again after an outage or some minutes. One caller
    /// requests them; the others meanwhile use the last answer. Fails at once where a call would.
    pub(super) async fn get(&self, peer: &Peer, instance: &str) -> Result<Arc<RemoteCapabilities>> {
        let came = Instant::now();
        if let Some(fresh) = self.fresh(peer) {
            return Ok(fresh);
        }
        let error = |failure| peer.error(&"requesting its capabilities", failure);
        peer.breaker.check().map_err(error)?;
        let request_lock = match (self.request_lock.try_lock(), self.last()) {
            (Ok(request_lock), _) => request_lock,
            (Err(_), Some(last)) => return Ok(last),
            (Err(_), None) => self.request_lock.lock().await,
        };
        if let Some(fresh) = self.fresh(peer) {
            return Ok(fresh);
        }
        if let Some((at, error)) = &self.last.lock().failed
            && *at > came
        {
            return Err(error.clone());
        }
        let answer = ask(peer, instance).await.map(Arc::new).map_err(error);
        let mut last = self.last.lock();
        drop(request_lock);
        match &answer {
            Ok(capabilities) => {
                last.capabilities = Some(Arc::clone(capabilities));
                last.answered = Some((Instant::now(), peer.breaker.outages()));
            }
            Err(error) => last.failed = Some((Instant::now(), error.clone())),
        }
        answer
    }

    /// Returns the last answer without waiting. If it is old, a new one is requested meanwhile.
    pub(super) fn at_hand(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        instance: &InstanceName,
    ) -> Option<Arc<RemoteCapabilities>> {
        let last = self.last()?;
        if self.fresh(peer).is_none() && self.request_lock.try_lock().is_ok() {
            let (known, asked, instance) = (Arc::clone(self), Arc::clone(peer), instance.clone());
            drop(peer.spawn(async move {
                if let Err(error) = known.get(&asked, instance.as_str()).await {
                    tracing::debug!(%error, "failed to update the backing cache's capabilities");
                }
            }));
        }
        Some(last)
    }

    /// Corrects the last answer of a peer that supports less than it announced, until the next answer.
    pub(super) fn correct(&self, change: impl FnOnce(&mut RemoteCapabilities)) {
        if let Some(capabilities) = &mut self.last.lock().capabilities {
            change(Arc::make_mut(capabilities));
        }
    }

    /// Returns the last answer, however old.
    pub(super) fn last(&self) -> Option<Arc<RemoteCapabilities>> {
        self.last.lock().capabilities.clone()
    }

    fn fresh(&self, peer: &Peer) -> Option<Arc<RemoteCapabilities>> {
        let last = self.last.lock();
        let (at, outages) = last.answered?;
        let is_fresh = outages == peer.breaker.outages() && at.elapsed() < KEPT;
        is_fresh.then(|| last.capabilities.clone()).flatten()
    }
}

async fn ask(peer: &Peer, instance: &str) -> Result<RemoteCapabilities, Failure> {
    match peer.call(&capabilities(instance)).await {
        Ok(answer) => Ok(RemoteCapabilities::of(&answer)),
        Err(failure) if failure.code() == Some(Code::Unimplemented) => {
            Ok(RemoteCapabilities::unknown())
        }
        Err(failure) => Err(failure),
    }
}

pub(super) const fn function(function: DigestFunction) -> i32 {
    let value: v2::digest_function::Value = function.to_proto();
    value as i32
}
