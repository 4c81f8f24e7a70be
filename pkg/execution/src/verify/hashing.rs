//! A store whose outputs are hashed and not stored.

use std::sync::Arc;

use async_trait::async_trait;
use gorego_storage::{Adopt, Digest, DigestFunction, Error, Hasher, Links, Result, read_at};
use tokio::task::yield_now;

/// The bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// A store that has the inputs of actions, and only hashes their outputs.
#[derive(Debug)]
pub(crate) struct HashOnly(pub(crate) Arc<dyn Links>);

#[async_trait]
impl Links for HashOnly {
    fn inner(&self) -> Option<&dyn Links> {
        Some(&*self.0)
    }

    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
        digests(function, files).await
    }
}

/// Returns the digests of files, which stay where they are.
pub(crate) async fn digests(function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
    let mut digests = Vec::with_capacity(files.len());
    for file in files {
        digests.push(hash(function, &file).await);
    }
    digests
}

async fn hash(function: DigestFunction, file: &Adopt) -> Result<Digest> {
    let (file, _) = file.open()?;
    let mut hasher = Hasher::new(function);
    loop {
        let chunk = read_at(&file, hasher.size(), CHUNK)
            .map_err(|error| Error::io("reading", "an output", error))?;
        if chunk.is_empty() {
            return Ok(hasher.finish());
        }
        hasher.update(&chunk);
        // So that a stop is seen in between.
        yield_now().await;
    }
}
