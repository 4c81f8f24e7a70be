//! `FindMissingBlobs`, in pieces.

use std::collections::HashSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use reapi::v2::{self, FindMissingBlobsRequest};

use super::{
    RemoteStore,
    bounded::{self, FIND_MISSING, Limits},
    capabilities::function,
    failure::Failure,
    peer::Peer,
};
use gorego_storage::{Digest, DigestFunction, Result};

/// Digests in one call: a small fraction of a message of 4 MiB, so that many are looked up at once.
const CHUNK: usize = 2000;
/// An answer repeats at most the question: what each digest in it may take, encoded and decoded.
const ENCODED: usize = 150;
const DECODED: usize = 512;

/// Which are not there, each once, in the order of their first mention.
pub(super) async fn find(store: &RemoteStore, digests: &[Digest]) -> Result<Vec<Digest>> {
    let mut seen = HashSet::with_capacity(digests.len());
    let unique: Vec<Digest> = digests
        .iter()
        .filter(|digest| !digest.is_empty_blob() && seen.insert(**digest))
        .copied()
        .collect();
    drop(seen);
    if unique.is_empty() {
        return Ok(unique);
    }
    let mut calls = Vec::new();
    for function in DigestFunction::ALL {
        let of_it = unique.iter().filter(|digest| digest.function() == function);
        let of_it: Vec<Digest> = of_it.copied().collect();
        if of_it.is_empty() {
            continue;
        }
        store.offered(function).await?;
        calls.extend(
            of_it
                .chunks(CHUNK)
                .map(|chunk| ask(store, function, chunk.to_vec())),
        );
    }
    let missing: HashSet<Digest> = stream::iter(calls)
        .buffer_unordered(store.peer.max_calls())
        .try_fold(HashSet::new(), async |mut all, some| {
            all.extend(some);
            Ok(all)
        })
        .await?;
    if let Some(present) = unique.iter().find(|digest| !missing.contains(digest)) {
        store.canary.set(present);
    }
    Ok(unique
        .into_iter()
        .filter(|digest| missing.contains(digest))
        .collect())
}

async fn ask(store: &RemoteStore, of: DigestFunction, digests: Vec<Digest>) -> Result<Vec<Digest>> {
    let (request, limits) = question(store.instance.as_str(), of, &digests);
    let answer = store.peer.call(0, |link| {
        let request = request.clone();
        bounded::call(link, request, &FIND_MISSING, limits)
    });
    let parsed = answer
        .await
        .and_then(|answer| parse(of, &digests, &answer.missing_blob_digests));
    parsed.map_err(|failure| store.peer.error_of("looking for", &digests, failure))
}

/// Whether the peer lacks a blob. Asks once, and fails when that fails.
pub(super) async fn lacks(peer: &Peer, instance: &str, digest: &Digest) -> Result<bool, Failure> {
    let (of, asked) = (digest.function(), [*digest]);
    let (request, limits) = question(instance, of, &asked);
    let answer = peer.once(peer.timeout(), |link| {
        bounded::call(link, request.clone(), &FIND_MISSING, limits)
    });
    let missing = parse(of, &asked, &answer.await?.missing_blob_digests)?;
    Ok(!missing.is_empty())
}

fn question(
    instance: &str,
    of: DigestFunction,
    digests: &[Digest],
) -> (FindMissingBlobsRequest, Limits) {
    let request = FindMissingBlobsRequest {
        instance_name: instance.to_owned(),
        blob_digests: digests.iter().map(Digest::to_proto).collect(),
        digest_function: function(of),
    };
    let limits = Limits {
        encoded: ENCODED * (digests.len() + 10),
        decoded: DECODED * (digests.len() + 10),
    };
    (request, limits)
}

/// The digests in an answer. Where others are in it than those that were asked for, it says nothing
/// of these.
fn parse(
    of: DigestFunction,
    asked: &[Digest],
    missing: &[v2::Digest],
) -> Result<Vec<Digest>, Failure> {
    let asked: HashSet<&Digest> = asked.iter().collect();
    let digest = |digest: &v2::Digest| match Digest::from_proto(Some(of), digest) {
        Ok(digest) if asked.contains(&digest) => Ok(digest),
        Ok(other) => Err(Failure::Nonsense(format!(
            "its answer: {other} was not asked for"
        ))),
        Err(why) => Err(Failure::Nonsense(format!("its answer: {why}"))),
    };
    missing.iter().map(digest).collect()
}
