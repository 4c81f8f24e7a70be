//! What a peer can do (REAPI `Capabilities`), asked when needed and then remembered.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reapi::v2::{self, GetCapabilitiesRequest, ServerCapabilities};
use tokio::time::Instant;
use tonic::Code;

use super::{
    failure::Failure,
    methods::{Call, GET_CAPABILITIES, Limits},
    peer::Peer,
};
use gorego_storage::{Compressor, DigestFunction, Error, InstanceName, Result};

/// A peer's configuration changes when it restarts; a peer behind a balancer restarts unseen.
const KEPT: Duration = Duration::from_mins(5);
/// What gRPC takes in one message by default.
const MESSAGE: u64 = 4 << 20;
/// Beside the content, of a whole batch.
const FRAMING: u64 = 64 << 10;

/// What a peer can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCapabilities {
    /// The digest functions of its blobs; those that are known here.
    pub digest_functions: Vec<DigestFunction>,
    /// The sum of the blobs' sizes in one batch, in bytes.
    pub max_batch_bytes: u64,
    /// Whether it streams content compressed with Zstandard.
    pub zstd_streams: bool,
    /// Whether it takes content in batches compressed with Zstandard.
    pub zstd_batches: bool,
}

impl RemoteCapabilities {
    /// What a peer is taken for that does not say.
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

    /// Refuses a digest function that the peer does not have.
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

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Known {
    last: Mutex<Last>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Last {
    answer: Option<Answer>,
    /// The last failure to get one, for those who waited for it.
    failed: Option<(Instant, Error)>,
}

#[derive(Debug)]
struct Answer {
    capabilities: Arc<RemoteCapabilities>,
    at: Instant,
    outages: u64,
}

impl Known {
    /// What the peer can do; asked anew when it was out of reach meanwhile, or after a while. One asks,
    /// and the others go by the last answer. Fails at once where a call would.
    pub(super) async fn get(&self, peer: &Peer, instance: &str) -> Result<Arc<RemoteCapabilities>> {
        let came = Instant::now();
        if let Some(fresh) = self.fresh(peer) {
            return Ok(fresh);
        }
        let error = |failure| peer.error(&"asking what it can do", failure);
        peer.gate.check().map_err(error)?;
        let asking = match (self.asking.try_lock(), self.last()) {
            (Ok(asking), _) => asking,
            (Err(_), Some(last)) => return Ok(last),
            (Err(_), None) => self.asking.lock().await,
        };
        if let Some(fresh) = self.fresh(peer) {
            return Ok(fresh);
        }
        if let Some((at, error)) = &self.known().failed
            && *at > came
        {
            return Err(error.clone());
        }
        let answer = ask(peer, instance).await.map_err(error);
        let mut known = self.known();
        drop(asking);
        match answer {
            Ok(capabilities) => {
                let capabilities = Arc::new(capabilities);
                known.answer = Some(Answer {
                    capabilities: Arc::clone(&capabilities),
                    at: Instant::now(),
                    outages: peer.gate.outages(),
                });
                Ok(capabilities)
            }
            Err(error) => {
                known.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The last answer, without waiting for the peer. It is asked anew meanwhile, as in [`Self::get`].
    pub(super) fn at_hand(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        instance: &InstanceName,
    ) -> Option<Arc<RemoteCapabilities>> {
        let last = self.last()?;
        if self.fresh(peer).is_none() && self.asking.try_lock().is_ok() {
            let (known, asked, instance) = (Arc::clone(self), Arc::clone(peer), instance.clone());
            // What comes of it is for the next one who wants to know.
            drop(peer.spawn(async move {
                if let Err(error) = known.get(&asked, instance.as_str()).await {
                    tracing::debug!(%error, "what the backing cache said last still holds");
                }
            }));
        }
        Some(last)
    }

    /// The peer turned out to do less than it said, which holds until it is asked again.
    pub(super) fn correct(&self, change: impl FnOnce(&mut RemoteCapabilities)) {
        if let Some(answer) = &mut self.known().answer {
            change(Arc::make_mut(&mut answer.capabilities));
        }
    }

    fn known(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last answer, however long ago.
    pub(super) fn last(&self) -> Option<Arc<RemoteCapabilities>> {
        let known = self.known();
        let answer = known.answer.as_ref()?;
        Some(Arc::clone(&answer.capabilities))
    }

    fn fresh(&self, peer: &Peer) -> Option<Arc<RemoteCapabilities>> {
        let known = self.known();
        let answer = known.answer.as_ref()?;
        let fresh = answer.outages == peer.gate.outages() && answer.at.elapsed() < KEPT;
        fresh.then(|| Arc::clone(&answer.capabilities))
    }
}

/// The call that asks what a peer can do.
pub(super) fn call(instance: &str) -> Call<GetCapabilitiesRequest, ServerCapabilities> {
    let request = GetCapabilitiesRequest {
        instance_name: instance.to_owned(),
    };
    GET_CAPABILITIES.call(request, Limits::default())
}

async fn ask(peer: &Peer, instance: &str) -> Result<RemoteCapabilities, Failure> {
    match peer.call(&call(instance)).await {
        Ok(answer) => Ok(RemoteCapabilities::of(&answer)),
        Err(failure) if failure.code() == Some(Code::Unimplemented) => {
            Ok(RemoteCapabilities::unknown())
        }
        Err(failure) => Err(failure),
    }
}

/// The function as requests name it.
pub(super) const fn function(function: DigestFunction) -> i32 {
    let value: v2::digest_function::Value = function.to_proto();
    value as i32
}
