//! Calls of `FindMissingBlobs`.

use std::collections::HashSet;

use reapi::v2::{FindMissingBlobsRequest, FindMissingBlobsResponse};

use super::{
    capabilities::function,
    failure::Failure,
    methods::{Call, Limits},
    peer::Peer,
};
use gorego_storage::{Digest, DigestFunction, Result};

/// The digests in one call: a small fraction of a message of 4 MiB, so that many are looked up at once.
pub(super) const CHUNK: usize = 2000;
/// The most bytes that each digest takes in an answer, encoded and decoded.
const ENCODED: usize = 150;
const DECODED: usize = 512;

/// Returns the digests without repetitions and without the empty blob, in the order of their first mention.
pub(super) fn unique(digests: &[Digest]) -> Vec<Digest> {
    let mut seen = HashSet::with_capacity(digests.len());
    let is_new = |digest: &&Digest| !digest.is_empty_blob() && seen.insert(**digest);
    digests.iter().filter(is_new).copied().collect()
}

/// Looks up blobs of one function, at most [`CHUNK`].
pub(super) async fn find(
    peer: &Peer,
    instance: &str,
    function: DigestFunction,
    digests: Vec<Digest>,
) -> Result<Vec<Digest>> {
    let answer = peer.call(&call(instance, function, &digests)).await;
    let missing = answer.and_then(|answer| parse(function, &digests, &answer));
    missing.map_err(|failure| peer.error_of("looking up", &digests, failure))
}

/// Whether the peer lacks a blob. The call is made once, without retries.
pub(super) async fn lacks(peer: &Peer, instance: &str, digest: &Digest) -> Result<bool, Failure> {
    let (function, digests) = (digest.function(), [*digest]);
    let call = call(instance, function, &digests);
    let answer = peer.once(&call, peer.timeout).await?;
    Ok(!parse(function, &digests, &answer)?.is_empty())
}

fn call(instance: &str, of: DigestFunction, digests: &[Digest]) -> Call<FindMissingBlobsRequest> {
    let request = FindMissingBlobsRequest {
        instance_name: instance.to_owned(),
        blob_digests: digests.iter().map(Digest::to_proto).collect(),
        digest_function: function(of),
    };
    let limits = Limits {
        encoded: ENCODED * (digests.len() + 10),
        decoded: DECODED * (digests.len() + 10),
    };
    Call::new(request, limits, 0)
}

/// Returns the digests in an answer. Fails if it is about other blobs than those asked for.
fn parse(
    function: DigestFunction,
    asked: &[Digest],
    answer: &FindMissingBlobsResponse,
) -> Result<Vec<Digest>, Failure> {
    let asked: HashSet<&Digest> = asked.iter().collect();
    let missing = answer.missing_blob_digests.iter().map(|digest| {
        let why = match Digest::from_proto(Some(function), digest) {
            Ok(digest) if asked.contains(&digest) => return Ok(digest),
            Ok(other) => format!("{other} was not requested"),
            Err(why) => why.to_string(),
        };
        Err(Failure::InvalidAnswer(format!("invalid answer: {why}")))
    });
    missing.collect()
}
