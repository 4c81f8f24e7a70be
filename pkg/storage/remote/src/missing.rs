//! Calls of `FindMissingBlobs`.

use std::collections::HashSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use reapi::v2::FindMissingBlobsRequest;
use tonic::Status;

use super::{
    failure::Failure,
    methods::{Call, Limits},
    peer::Peer,
    retry::Retry,
};
use gorego_storage::{Digest, DigestFunction, Result};

/// The digests in one call: a small fraction of a message of 4 MiB, so that many are looked up at once.
const CHUNK: usize = 2000;
/// The most memory that each digest takes in a decoded answer, in bytes.
const DECODED: usize = 512;

/// Returns the digests without repetitions and without the empty blob, in the order of their first mention.
pub(super) fn unique(digests: &[Digest]) -> Vec<Digest> {
    let mut seen = HashSet::with_capacity(digests.len());
    let is_new = |digest: &&Digest| !digest.is_empty_blob() && seen.insert(**digest);
    digests.iter().filter(is_new).copied().collect()
}

/// Returns the missing ones of `digests`, each once, in the order of their first mention.
pub(super) async fn find_missing(peer: &Peer, digests: &[Digest]) -> Result<Vec<Digest>> {
    let mut unique = unique(digests);
    let mut calls = Vec::new();
    for function in DigestFunction::ALL {
        let of_it = unique.iter().filter(|digest| digest.function() == function);
        let of_it: Vec<Digest> = of_it.copied().collect();
        if !of_it.is_empty() {
            peer.offered(function).await?;
        }
        for digests in of_it.chunks(CHUNK).map(<[Digest]>::to_vec) {
            calls.push(async move {
                let missing = find(peer, &digests, &mut peer.retry()).await;
                missing.map_err(|failure| match &digests[..] {
                    [one] => peer.error(&format_args!("looking up {one}"), failure),
                    many => peer.error(&format_args!("looking up {} blobs", many.len()), failure),
                })
            });
        }
    }
    let missing: Vec<Vec<Digest>> = stream::iter(calls)
        .buffer_unordered(peer.options.max_calls)
        .try_collect()
        .await?;
    let missing: HashSet<Digest> = missing.into_iter().flatten().collect();
    if let Some(present) = unique.iter().find(|digest| !missing.contains(digest)) {
        peer.canary.set(present);
    }
    unique.retain(|digest| missing.contains(digest));
    Ok(unique)
}

/// Looks up blobs of one function in one call. Fails if the answer is about other blobs.
pub(super) async fn find(
    peer: &Peer,
    digests: &[Digest],
    retry: &mut Retry,
) -> Result<Vec<Digest>, Failure> {
    let function = digests.first().map(Digest::function);
    let request = FindMissingBlobsRequest {
        instance_name: peer.instance.as_str().to_owned(),
        blob_digests: digests.iter().map(Digest::to_proto).collect(),
        digest_function: function.map_or(0, |function| function.to_proto() as i32),
    };
    let limits = Limits::decoded(DECODED * (digests.len() + 10));
    let answer = peer.call_until(&Call(request, limits, 0), retry).await?;
    let asked: HashSet<&Digest> = digests.iter().collect();
    let missing = answer.missing_blob_digests.iter().map(|digest| {
        let why = match Digest::from_proto(function, digest) {
            Ok(digest) if asked.contains(&digest) => return Ok(digest),
            Ok(other) => format!("{other} was not requested"),
            Err(why) => why.to_string(),
        };
        Err(Status::internal(format!("invalid answer: {why}")).into())
    });
    missing.collect()
}
