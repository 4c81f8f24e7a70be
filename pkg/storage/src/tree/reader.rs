//! Reading the directories out of a `Tree` while it arrives.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use reapi::v2::Directory;

use super::{MAX_DIRECTORY_BYTES, TreeError, directory::EncodedDirectory, wire::Header};
use crate::{BlobStore, CHUNK_SIZE, Chunks, Digest, Error};

const ROOT: u64 = 1;
const CHILDREN: u64 = 2;

/// The directories of a `Tree`, in its order, the root among them. Holds one at a time, never the
/// whole tree.
pub struct TreeReader {
    tree: Digest,
    chunks: Chunks,
    /// Arrived, and not yet passed.
    buffer: BytesMut,
}

impl TreeReader {
    /// Opens the `Tree` stored under `tree`.
    pub async fn open(store: &dyn BlobStore, tree: Digest) -> Result<Self, Error> {
        let blob = store.get(&tree, 0).await?;
        Ok(Self::new(tree, blob.into_chunks()))
    }

    /// Reads the `Tree` that arrives in `chunks`; `tree` names it in errors.
    pub fn new(tree: Digest, chunks: Chunks) -> Self {
        Self {
            tree,
            chunks,
            buffer: BytesMut::new(),
        }
    }

    /// The next directory.
    pub async fn next(&mut self) -> Result<Option<Directory>, TreeError> {
        let Some(encoded) = self.next_encoded().await? else {
            return Ok(None);
        };
        encoded.decode().map(Some).map_err(|why| self.not_tree(why))
    }

    pub(crate) async fn next_encoded(&mut self) -> Result<Option<EncodedDirectory>, TreeError> {
        while let Some(header) = self.next_header().await? {
            if header.delimited && matches!(header.number, ROOT | CHILDREN) {
                return self.take(header.content).await.map(Some);
            }
            self.pass(header.content).await?;
        }
        Ok(None)
    }

    /// That the tree is none, in the words of `why`.
    fn not_tree(&self, why: impl Into<String>) -> TreeError {
        TreeError::NotTree {
            digest: self.tree,
            why: why.into(),
        }
    }

    async fn next_header(&mut self) -> Result<Option<Header>, TreeError> {
        loop {
            let read = Header::read(&self.buffer).map_err(|why| self.not_tree(why))?;
            if let Some(header) = read {
                self.buffer.advance(header.len);
                return Ok(Some(header));
            }
            if !self.arrive().await? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(self.cut_off())
                };
            }
        }
    }

    async fn take(&mut self, len: u64) -> Result<EncodedDirectory, TreeError> {
        if len > MAX_DIRECTORY_BYTES {
            return Err(TreeError::TooLarge {
                digest: self.tree,
                bytes: len,
            });
        }
        let missing = len.saturating_sub(self.buffer.len() as u64);
        if missing <= self.tree.size() {
            // All at once, rather than twice as much while it grows; with what comes along.
            let missing = usize::try_from(missing).unwrap_or(usize::MAX);
            self.buffer.reserve(missing.saturating_add(CHUNK_SIZE));
        }
        while (self.buffer.len() as u64) < len {
            if !self.arrive().await? {
                return Err(self.cut_off());
            }
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(EncodedDirectory(self.buffer.split_to(len).freeze()))
    }

    async fn pass(&mut self, len: u64) -> Result<(), TreeError> {
        let mut left = len;
        loop {
            let passed = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            self.buffer.advance(passed);
            left -= passed as u64;
            if left == 0 {
                return Ok(());
            }
            if !self.arrive().await? {
                return Err(self.cut_off());
            }
        }
    }

    /// Waits for the next chunk; `false` at the end.
    async fn arrive(&mut self) -> Result<bool, TreeError> {
        let Some(chunk) = self.chunks.next().await else {
            return Ok(false);
        };
        let chunk: Bytes = chunk?;
        self.buffer.extend_from_slice(&chunk);
        Ok(true)
    }

    fn cut_off(&self) -> TreeError {
        self.not_tree("it ends within a field")
    }
}

impl fmt::Debug for TreeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeReader")
            .field("tree", &self.tree)
            .finish_non_exhaustive()
    }
}
