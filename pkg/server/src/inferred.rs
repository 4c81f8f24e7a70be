//! Digests of clients that name no digest function: 64 digits may be of SHA-256 or of BLAKE3, and
//! some clients say in no call which of them they use.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, Blob, BlobStore, CachedResult, Digest, DigestFunction, Error,
    Put, Result, UploadId, Uploads, named_blobs,
};
use reapi::v2::ActionResult;
use tonic::Code;

use crate::Services;

/// The order of the functions of a digest that was parsed without one.
const AS_PARSED: [DigestFunction; 2] = [DigestFunction::Sha256, DigestFunction::Blake3];
/// The number of digests that are looked for under the second function at once.
const BATCH: usize = 10_000;

/// Stores that are asked for a digest of unnamed function under each function in turn. No hash is one
/// of several functions, so that whatever is found is what was meant.
#[derive(Debug)]
struct Inferring {
    services: Services,
    /// In the order in which they are tried.
    functions: Vec<DigestFunction>,
}

/// Wraps the stores, so that digests without a function are tried under `functions`.
pub(crate) fn infer(services: Services, functions: Vec<DigestFunction>) -> Services {
    let inferring = Arc::new(Inferring {
        services,
        functions,
    });
    Services {
        blobs: Arc::<Inferring>::clone(&inferring),
        uploads: Arc::<Inferring>::clone(&inferring),
        actions: inferring,
    }
}

impl Inferring {
    fn blobs(&self) -> &dyn BlobStore {
        &*self.services.blobs
    }

    fn actions(&self) -> &dyn ActionCache {
        &*self.services.actions
    }

    /// The digest, and its form under the other function, tried when the first is not found.
    fn meant(&self, digest: &Digest) -> (Digest, Option<Digest>) {
        let digest = digest.among(&self.functions);
        (digest.only(), digest.other())
    }

    /// The digests as they are tried first.
    fn all_meant<'a>(&self, digests: &'a [Digest]) -> Cow<'a, [Digest]> {
        if self.functions == AS_PARSED {
            return Cow::Borrowed(digests);
        }
        let meant = digests.iter().map(|digest| digest.among(&self.functions));
        meant.collect()
    }

    /// Asks `find_missing` of digests that may be of either function.
    async fn find_missing_inferred(
        &self,
        digests: &[Digest],
        second: DigestFunction,
    ) -> Result<Vec<Digest>> {
        let missing = self.blobs().find_missing(digests).await;
        let missing = match missing {
            Err(error) if is_absence(&error) => digests.to_vec(),
            missing => missing?,
        };
        let mut absent = Vec::new();
        for batch in missing.chunks(BATCH) {
            let others: Vec<_> = batch
                .iter()
                .filter_map(|digest| digest.under(second))
                .collect();
            let mut others: HashSet<_> = match self.blobs().find_missing(&others).await {
                Err(error) if is_absence(&error) => others.into_iter().collect(),
                others => others?.into_iter().collect(),
            };
            let is_absent = |digest: &&Digest| {
                let other = digest.under(second);
                other.is_none_or(|other| others.remove(&other))
            };
            absent.extend(batch.iter().filter(is_absent));
        }
        Ok(absent)
    }
}

/// Whether a blob is unavailable under the tried function: it is missing, or the backing cache does
/// not offer that function.
fn is_absence(error: &Error) -> bool {
    let is_refused = matches!(
        error,
        Error::Refused {
            code: Code::InvalidArgument,
            ..
        }
    );
    is_refused || is_missing(error)
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::NotFound(_)) || error.is_result_miss()
}

/// Returns the second outcome, unless it only repeats that the blob or the result is missing.
fn better<T>(first: Result<T>, second: Result<T>) -> Result<T> {
    match (first, second) {
        (Err(first), Err(second)) if is_missing(&first) && is_absence(&second) => Err(first),
        (_, second) => second,
    }
}

/// Returns the outcomes of absent blobs that may be of another function, and these digests.
fn others_of_absent<'a, T>(
    found: &'a mut [Result<T>],
    digests: &[Digest],
) -> (Vec<&'a mut Result<T>>, Vec<Digest>) {
    let absent = found.iter_mut().zip(digests);
    absent
        .filter(|(found, _)| found.as_ref().is_err_and(is_absence))
        .filter_map(|(found, digest)| Some((found, digest.other()?)))
        .unzip()
}

/// Whether content that was refused under one function should be tried as `other`.
fn is_of_other<T>(put: &Result<T>, other: &Digest, content: &[u8]) -> bool {
    let refused = |error: &Error| is_absence(error) || matches!(error, Error::Mismatch { .. });
    put.as_ref().is_err_and(refused) && other.is_of(content)
}

#[async_trait]
impl BlobStore for Inferring {
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.blobs().digest_functions().await
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let digests = self.all_meant(digests);
        match digests.iter().find_map(Digest::other) {
            Some(other) => self.find_missing_inferred(&digests, other.function()).await,
            None => self.blobs().find_missing(&digests).await,
        }
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let digest = digest.among(&self.functions);
        let found = self.blobs().get(&digest, offset).await;
        match digest.other() {
            Some(other) if found.as_ref().is_err_and(is_absence) => {
                better(found, self.blobs().get(&other, offset).await)
            }
            _ => found,
        }
    }

    /// Content in memory is hashed under the other function after it was refused under the first. A
    /// stream is left to the store, which hashes the staged content again.
    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let (first, other) = self.meant(digest);
        let (Some(other), Blob::Bytes(content)) = (other, &blob) else {
            return self.blobs().put(&digest.among(&self.functions), blob).await;
        };
        let content = content.clone();
        let put = self.blobs().put(&first, blob).await;
        if is_of_other(&put, &other, &content) {
            return self.blobs().put(&other, Blob::Bytes(content)).await;
        }
        put
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        let digests = self.all_meant(digests);
        let mut found = self.blobs().fetch_batch(&digests).await;
        let (places, others) = others_of_absent(&mut found, &digests);
        if !others.is_empty() {
            let again = self.blobs().fetch_batch(&others).await;
            for (place, fetched) in places.into_iter().zip(again) {
                *place = better(place.clone(), fetched);
            }
        }
        found
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let digests = self.all_meant(digests);
        let mut found = self.blobs().get_batch(&digests).await;
        let (places, others) = others_of_absent(&mut found, &digests);
        if !others.is_empty() {
            let again = self.blobs().get_batch(&others).await;
            for (place, content) in places.into_iter().zip(again) {
                *place = better(place.clone(), content);
            }
        }
        found
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        if blobs.iter().all(|(digest, _)| digest.other().is_none()) {
            return self.blobs().put_batch(blobs).await;
        }
        let meant = |(digest, content): (Digest, Bytes)| (digest.among(&self.functions), content);
        let blobs: Vec<_> = blobs.into_iter().map(meant).collect();
        let mut put = self.blobs().put_batch(blobs.clone()).await;
        let (places, others): (Vec<_>, Vec<_>) = put
            .iter_mut()
            .zip(blobs)
            .filter_map(|(put, (digest, content))| Some((put, (digest.other()?, content))))
            .filter(|(put, (other, content))| is_of_other(put, other, content))
            .unzip();
        if !others.is_empty() {
            let again = self.blobs().put_batch(others).await;
            for (place, put) in places.into_iter().zip(again) {
                *place = put;
            }
        }
        put
    }
}

#[async_trait]
impl Uploads for Inferring {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let digest = digest.among(&self.functions);
        self.services.uploads.committed(&digest, upload).await
    }
}

/// Treats a function that is not offered as one under which nothing is stored.
fn or_nothing<T: Default>(found: Result<T>) -> Result<T> {
    match found {
        Err(error) if is_absence(&error) => Ok(T::default()),
        found => found,
    }
}

#[async_trait]
impl ActionCache for Inferring {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let (first, other) = self.meant(action);
        let found = self.actions().get(instance, &first, memory).await;
        match other {
            Some(other) if found.as_ref().is_err_and(is_absence) => {
                better(found, self.actions().get(instance, &other, memory).await)
            }
            _ => found,
        }
    }

    /// Stores the result under the function of its outputs: the first one, unless some outputs are
    /// present under the other alone.
    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let (first, other) = self.meant(action);
        let Some(other) = other else {
            return self.actions().put(instance, &first, result).await;
        };
        if self.has_any(&first, &result).await? || !self.has_any(&other, &result).await? {
            return self.actions().put(instance, &first, result).await;
        }
        // One of an earlier put would be found before this one.
        if or_nothing(self.actions().find(instance, &first).await)?.is_some() {
            self.actions().put(instance, &first, result.clone()).await?;
        }
        self.actions().put(instance, &other, result).await
    }
}

impl Inferring {
    /// Whether any output of the result is stored under the function of `action`.
    async fn has_any(&self, action: &Digest, result: &ActionResult) -> Result<bool> {
        let mut outputs = named_blobs(action, result).unwrap_or_default();
        outputs.sort_unstable();
        outputs.dedup();
        match self.blobs().find_missing(&outputs).await {
            Err(error) if is_absence(&error) => Ok(false),
            missing => Ok(missing?.len() < outputs.len()),
        }
    }
}
