//! `BatchReadBlobs`.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use reapi::v2::{BatchReadBlobsRequest, batch_read_blobs_response::Response};
use tokio::time::{self, Instant};
use tonic::{Code, Status};

use super::{
    super::{
        RemoteCapabilities, RemoteStore,
        bounded::{self, BATCH_READ},
        capabilities::function,
        compression, download,
        failure::{Failure, mismatch},
        packing,
        peer::Turn,
    },
    LARGE, max_answer, otherwise,
};
use gorego_storage::{Blob, Compressor, Digest, DigestFunction, Error, Result};

type Read = (Digest, Result<Bytes>);

/// The content of several blobs, a result each, in order.
pub(in super::super) async fn get(store: &RemoteStore, digests: &[Digest]) -> Vec<Result<Bytes>> {
    let mut seen = HashSet::new();
    let unique: Vec<Digest> = digests
        .iter()
        .filter(|digest| !digest.is_empty_blob() && seen.insert(**digest))
        .copied()
        .collect();
    let results: HashMap<Digest, Result<Bytes>> = match store.capabilities().await {
        _ if unique.is_empty() => HashMap::new(),
        Ok(capabilities) => fetch(store, &capabilities, &unique, true).await,
        Err(error) => unique
            .into_iter()
            .map(|digest| {
                let error = store.unless_lacking(digest.function(), error.clone());
                (digest, Err(error))
            })
            .collect(),
    };
    let result = |digest: &Digest| {
        if digest.is_empty_blob() {
            return Ok(Bytes::new());
        }
        results
            .get(digest)
            .cloned()
            .unwrap_or(Err(Error::NotFound(*digest)))
    };
    digests.iter().map(result).collect()
}

/// Reads each blob. What is refused as a whole is asked for in smaller batches, if `again`.
fn fetch<'a>(
    store: &'a RemoteStore,
    capabilities: &'a RemoteCapabilities,
    unique: &'a [Digest],
    again: bool,
) -> BoxFuture<'a, HashMap<Digest, Result<Bytes>>> {
    fetch_packed(store, capabilities, unique, again).boxed()
}

async fn fetch_packed(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    unique: &[Digest],
    again: bool,
) -> HashMap<Digest, Result<Bytes>> {
    let mut calls: Vec<BoxFuture<'_, Vec<Read>>> = Vec::new();
    let mut results = HashMap::new();
    for function in DigestFunction::ALL {
        let of_it = unique.iter().filter(|digest| digest.function() == function);
        let of_it: Vec<Digest> = of_it.copied().collect();
        if of_it.is_empty() {
            continue;
        }
        if let Err(error) = capabilities.check(&store.peer, function) {
            results.extend(of_it.into_iter().map(|digest| (digest, Err(error.clone()))));
            continue;
        }
        let sizes = of_it.iter().map(Digest::size).enumerate();
        let packed = packing::pack(sizes, capabilities.max_batch_bytes, LARGE);
        for batch in packed.batches {
            let places = batch.iter().filter_map(|place| of_it.get(*place));
            let batch = places.copied().collect();
            calls.push(read(store, capabilities, function, batch, again).boxed());
        }
        for digest in packed.alone.iter().filter_map(|place| of_it.get(*place)) {
            let digest = *digest;
            calls.push(
                async move { vec![(digest, whole(store, capabilities, &digest).await)] }.boxed(),
            );
        }
    }
    results.extend(super::all(store, calls).await);
    results
}

async fn whole(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
) -> Result<Bytes> {
    let blob: Blob = download::start(store, capabilities, digest, 0).await?;
    blob.into_bytes().await
}

/// The content of one small blob.
pub(in super::super) async fn get_one(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
) -> Result<Bytes> {
    let read = read(store, capabilities, digest.function(), vec![*digest], false).await;
    let result = read.into_iter().next();
    result.map_or(Err(Error::NotFound(*digest)), |(_, result)| result)
}

/// One batch, of which those that the peer could not read just now are asked for again.
async fn read(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    of: DigestFunction,
    mut pending: Vec<Digest>,
    again: bool,
) -> Vec<Read> {
    let mut done = Vec::with_capacity(pending.len());
    let mut backoff = store.peer.backoff();
    let mut turn = Turn::First;
    let end = store.peer.end(pending.iter().map(Digest::size).sum());
    loop {
        let mut answers = match ask(store, capabilities, (end, turn), of, &pending).await {
            Ok(answers) => answers,
            Err(failure) => {
                done.extend(refused(store, capabilities, pending, failure, again).await);
                return done;
            }
        };
        let delay = backoff.next_delay();
        let mut again = Vec::new();
        for digest in pending {
            let content = match answers.remove(&digest) {
                Some(answer) => take(store.peer.name(), &digest, answer),
                None => Err(Failure::Nonsense("its answer leaves it out".to_owned())),
            };
            match content {
                Ok(content) => done.push((digest, Ok(content))),
                Err(failure) if failure.is_retryable() && delay.is_some() => again.push(digest),
                Err(failure) if failure.code() == Some(Code::NotFound) => {
                    done.push((digest, Err(Error::NotFound(digest))));
                }
                Err(failure) => {
                    let what = format_args!("reading {digest}");
                    done.push((digest, Err(store.peer.error(&what, failure))));
                }
            }
        }
        pending = again;
        turn = Turn::Again;
        match delay {
            Some(delay) if !pending.is_empty() => time::sleep(delay).await,
            _ => return done,
        }
    }
}

/// What becomes of a batch that failed as a whole.
async fn refused(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digests: Vec<Digest>,
    failure: Failure,
    again: bool,
) -> Vec<Read> {
    if again {
        let plain = RemoteCapabilities {
            zstd_batches: false,
            ..capabilities.clone()
        };
        let bytes = digests.iter().map(Digest::size).sum();
        let smaller = otherwise(store, &plain, &failure, digests.len(), bytes);
        if let Some((capabilities, again)) = smaller {
            let read = fetch(store, &capabilities, &digests, again).await;
            return read.into_iter().collect();
        }
    }
    let error = store.peer.error_of("reading", &digests, failure);
    let error = |digest| match error.clone() {
        Error::Refused {
            code: Code::NotFound,
            ..
        } => (digest, Err(Error::NotFound(digest))),
        other => (digest, Err(other)),
    };
    digests.into_iter().map(error).collect()
}

async fn ask(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    (end, turn): (Instant, Turn),
    of: DigestFunction,
    digests: &[Digest],
) -> Result<HashMap<Digest, Response>, Failure> {
    let compressors: &[Compressor] = if store.zstd && capabilities.zstd_streams {
        &Compressor::ALL
    } else {
        &[Compressor::Identity]
    };
    let request = BatchReadBlobsRequest {
        instance_name: store.instance.as_str().to_owned(),
        digests: digests.iter().map(Digest::to_proto).collect(),
        acceptable_compressors: compressors.iter().map(|c| c.to_proto() as i32).collect(),
        digest_function: function(of),
    };
    let bytes = digests.iter().map(Digest::size).sum();
    let most = max_answer(digests.len(), bytes);
    let answer = store
        .peer
        .call_until(end, turn, bytes, |link| {
            let request = request.clone();
            bounded::call(link, request, &BATCH_READ, most)
        })
        .await?;
    let keyed = answer.responses.into_iter().filter_map(|response| {
        let digest = Digest::from_field(Some(of), response.digest.as_ref()).ok()?;
        Some((digest, response))
    });
    Ok(keyed.collect())
}

/// The content in an answer, checked.
fn take(peer: &str, digest: &Digest, answer: Response) -> Result<Bytes, Failure> {
    if let Some(status) = answer.status.filter(|status| status.code != 0) {
        return Err(Status::new(Code::from_i32(status.code), status.message).into());
    }
    let wrong = |actual: String| {
        let actual = format_args!("{actual}, from {peer}");
        Failure::Own(mismatch(digest, actual))
    };
    let content = match Compressor::from_proto(answer.compressor) {
        Some(Compressor::Identity) => answer.data,
        Some(Compressor::Zstd) => {
            // Small enough for a batch.
            let size = usize::try_from(digest.size()).unwrap_or(usize::MAX);
            compression::decompress(&answer.data, size)
                .map_err(|why| wrong(format!("not decompressible: {why}")))?
        }
        None => {
            let message = format!("compressor {} was not asked for", answer.compressor);
            return Err(Failure::Nonsense(message));
        }
    };
    let actual = digest.function().digest(&content);
    if actual == *digest {
        Ok(content)
    } else {
        Err(wrong(actual.to_string()))
    }
}
