//! What a peer can do (REAPI `Capabilities`), asked when needed and then remembered.

use std::{sync::Arc, time::Duration};

use reapi::v2::{
    self, GetCapabilitiesRequest, ServerCapabilities, capabilities_client::CapabilitiesClient,
};
use tokio::{sync::Mutex, time::Instant};
use tonic::Code;

use super::{
    failure::Failure,
    peer::{Peer, Turn},
};
use crate::{Compressor, DigestFunction, Error, Result};

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
    /// Whether it takes action results.
    pub ac_updates: bool,
}

impl RemoteCapabilities {
    /// What a peer is taken for that does not say.
    fn unknown() -> Self {
        Self {
            digest_functions: DigestFunction::ALL.to_vec(),
            max_batch_bytes: MESSAGE - FRAMING,
            zstd_streams: false,
            zstd_batches: false,
            ac_updates: true,
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
        let updates = cache.action_cache_update_capabilities.as_ref();
        Self {
            digest_functions,
            // Larger batches would hold more memory than they save time.
            max_batch_bytes: match batch {
                0 => MESSAGE - FRAMING,
                some => some.min(MESSAGE - FRAMING),
            },
            zstd_streams: cache.supported_compressors.contains(&zstd),
            zstd_batches: cache.supported_batch_update_compressors.contains(&zstd),
            ac_updates: updates.is_none_or(|updates| updates.update_enabled),
        }
    }

    /// Refuses a digest function that the peer does not have.
    pub(super) fn check(&self, peer: &Peer, function: DigestFunction) -> Result<()> {
        if self.digest_functions.contains(&function) {
            return Ok(());
        }
        let offered: Vec<_> = self.digest_functions.iter().map(|f| f.name()).collect();
        Err(Error::Refused {
            peer: Arc::clone(peer.name()),
            code: Code::InvalidArgument,
            message: format!(
                "digest function {function} is not offered; offered are {}",
                offered.join(", ")
            ),
        })
    }
}

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Debug, Default)]
struct State {
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
    /// What the peer can do; asked anew when it was out of reach meanwhile, or after a while.
    pub(super) async fn get(&self, peer: &Peer, instance: &str) -> Result<Arc<RemoteCapabilities>> {
        let came = Instant::now();
        let mut state = self.0.lock().await;
        if let Some(answer) = &state.answer
            && answer.outages == peer.outages()
            && answer.at.elapsed() < KEPT
        {
            return Ok(Arc::clone(&answer.capabilities));
        }
        if let Some((at, error)) = &state.failed
            && *at > came
        {
            return Err(error.clone());
        }
        match ask(peer, instance).await {
            Ok(capabilities) => {
                let capabilities = Arc::new(capabilities);
                state.answer = Some(Answer {
                    capabilities: Arc::clone(&capabilities),
                    at: Instant::now(),
                    outages: peer.outages(),
                });
                Ok(capabilities)
            }
            Err(failure) => {
                let error = peer.error(&"asking what it can do", failure);
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

async fn ask(peer: &Peer, instance: &str) -> Result<RemoteCapabilities, Failure> {
    let request = GetCapabilitiesRequest {
        instance_name: instance.to_owned(),
    };
    let answer = peer.call(Turn::First, 0, |link| {
        let request = request.clone();
        async move {
            CapabilitiesClient::new(link)
                .get_capabilities(request)
                .await
        }
    });
    match answer.await {
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
