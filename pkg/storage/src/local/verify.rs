//! Hashing what lies on the disk.

use std::{fs, io, sync::Arc};

use super::core::Core;
use crate::{
    CHUNK_SIZE, Digest, DigestFunction, Hasher, Result,
    blob::read_at,
    index::{Key, Space},
};

/// How many blobs in doubt one pass over the index collects.
const PASS: usize = 4096;

/// The digest of a file's content. Blocks.
pub(super) fn hash_file(function: DigestFunction, file: &fs::File) -> io::Result<Digest> {
    hash_prefix(function, file, u64::MAX).map(Hasher::finish)
}

/// A hasher that has seen a file's first `len` bytes, or all of a shorter file. Blocks.
pub(super) fn hash_prefix(
    function: DigestFunction,
    file: &fs::File,
    len: u64,
) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(function);
    loop {
        let left = usize::try_from(len - hasher.size()).unwrap_or(usize::MAX);
        let chunk = read_at(file, hasher.size(), left.min(CHUNK_SIZE))?;
        if chunk.is_empty() {
            return Ok(hasher);
        }
        hasher.update(&chunk);
    }
}

/// Hashes every blob in doubt, one after the other, so that the next unclean stop finds few. Blocks
/// until done or cancelled.
pub(super) fn settle_doubts(core: &Arc<Core>) {
    while core.index.in_doubt() > 0 && !core.cancel.is_cancelled() {
        let mut keys = Vec::new();
        core.index.visit(|_, entry| {
            if entry.is_in_doubt() && keys.len() < PASS {
                keys.push((entry.key(), entry.size()));
            }
        });
        if keys.is_empty() {
            return;
        }
        for (key, size) in keys {
            if core.cancel.is_cancelled() {
                return;
            }
            if let Err(error) = settle(core, &key, size) {
                tracing::warn!(%error, "could not check a blob after an unclean stop");
                // It stays in doubt for its readers; asking again and again would not help.
                return;
            }
        }
    }
}

fn settle(core: &Core, key: &Key, size: u64) -> Result<()> {
    if key.space != Space::Cas {
        // Action results carry a checksum that every read checks.
        core.index.trust(key);
        return Ok(());
    }
    let name = core
        .locate(key)?
        .and_then(|path| path.rsplit_once('/').map(|(_, n)| n.to_owned()));
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let digest = name.and_then(|name| Digest::parse(Some(key.function), &name, size).ok());
    if let Some(digest) = digest {
        core.verify(&digest)?;
    } else {
        core.index.remove(key);
    }
    Ok(())
}
