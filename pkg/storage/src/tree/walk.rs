//! Walks the directories below a root, breadth first (REAPI `GetTree`).

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use reapi::{shapes::Shaped as _, v2::Directory};

use super::{
    MAX_DIRECTORY_BYTES, TreeError,
    queue::DigestQueue,
    reader::{Node, Nodes},
};
use crate::{Blob, BlobStore, Digest, DigestFunction, Result};

/// The most directories fetched in one batch.
const BATCH: usize = 64;
/// The most bytes of directories fetched in one batch. A larger directory is read while it arrives.
const BATCH_BYTES: u64 = 1024 * 1024;

/// The most memory that a decoded directory may take, in bytes: more than the largest real one takes.
const MAX_DECODED_BYTES: usize = 128 * 1024 * 1024;

/// A walk over the directories below a root: the root first, each directory once, without those that the
/// store lacks. Takes at most 64 bytes of memory for each directory with a hash of 32 bytes.
#[derive(Debug)]
pub struct TreeWalk {
    store: Arc<dyn BlobStore>,
    root: Option<Digest>,
    queue: DigestQueue,
    /// The number in the queue of the next directory.
    position: u32,
    /// The highest position reached. Children of earlier directories are in the queue, so returning to a lower position
    /// reads nothing.
    furthest: u32,
    /// The fetched directories from `position` on; without content if it is a single large one.
    fetched: VecDeque<(Digest, Option<Result<Bytes>>)>,
}

impl TreeWalk {
    /// Creates a walk that begins with `root`.
    pub fn new(store: Arc<dyn BlobStore>, root: Digest) -> Self {
        let mut walk = Self::below(store, root.function(), &[root]);
        walk.root = Some(root);
        walk
    }

    /// Creates a walk over the directories below any of `roots`, each of which may be missing.
    pub(crate) fn below(
        store: Arc<dyn BlobStore>,
        function: DigestFunction,
        roots: &[Digest],
    ) -> Self {
        let mut queue = DigestQueue::new(function);
        for root in roots {
            queue.push(root);
        }
        Self {
            store,
            root: None,
            queue,
            position: 0,
            furthest: 0,
            fetched: VecDeque::new(),
        }
    }

    /// Returns the number of known directories: those visited and those queued.
    pub const fn known(&self) -> u32 {
        self.queue.len()
    }

    /// Returns the number of directories passed, missing ones included. [`Self::skip_to`] continues there.
    pub const fn position(&self) -> u32 {
        self.position
    }

    /// Returns the highest position so far. Up to it, [`Self::skip_to`] reads nothing.
    pub const fn furthest(&self) -> u32 {
        self.furthest
    }

    /// Moves to `position`, or to the end of the tree if that comes first. Reads the directories not yet
    /// visited, since their children are not known.
    pub async fn skip_to(&mut self, position: u32) -> Result<(), TreeError> {
        self.return_to(position);
        while self.position < position {
            let most = position - self.position;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if self.visit(most).await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Moves to `position`, or to the furthest position if that is lower. Drops the fetched directories.
    pub fn return_to(&mut self, position: u32) {
        self.position = self.furthest.min(position);
        self.fetched = VecDeque::new();
    }

    /// Returns the next directory that is present. Fetches at most `most` directories, or a batch.
    /// [`Error::NotFound`] if the root is missing.
    pub async fn next(&mut self, most: usize) -> Result<Option<(Digest, Directory)>, TreeError> {
        while let Some((blob, content)) = self.visit(most).await? {
            let Some(content) = content else {
                continue;
            };
            let directory = decode(content).map_err(|why| TreeError::Malformed {
                blob,
                message: "Directory",
                why,
            })?;
            return Ok(Some((blob, directory)));
        }
        Ok(None)
    }

    /// Returns the nodes of the next directory, `None` for a missing one. Its children are visited only if
    /// they are passed to [`Self::add`].
    pub(crate) async fn next_nodes(
        &mut self,
    ) -> Result<Option<(Digest, Option<Nodes>)>, TreeError> {
        let next = self.next_blob(BATCH).await?;
        Ok(next.map(|(digest, blob)| {
            let nodes = blob.map(|content| Nodes::of_directory(digest, content));
            (digest, nodes)
        }))
    }

    /// Adds a directory to the end of the walk.
    pub(crate) fn add(&mut self, child: &Digest) {
        self.queue.push(child);
    }

    /// Visits the next directory: queues its children and returns its content, `None` for a missing one.
    async fn visit(&mut self, most: usize) -> Result<Option<(Digest, Option<Bytes>)>, TreeError> {
        let Some((digest, blob)) = self.next_blob(most).await? else {
            return Ok(None);
        };
        let content = match blob {
            Some(_) if digest.size() > MAX_DIRECTORY_BYTES => {
                return Err(TreeError::TooLarge(digest));
            }
            Some(blob) => Some(blob.into_bytes().await?),
            None => None,
        };
        if let Some(content) = &content {
            let mut nodes = Nodes::of_directory(digest, Blob::Bytes(content.clone()));
            while let Some(node) = nodes.next().await? {
                if let Node::Directory(child) = node {
                    self.add(&child);
                }
            }
        }
        self.furthest = self.furthest.max(self.position);
        Ok(Some((digest, content)))
    }

    /// Returns the next directory's content, `None` for a missing one.
    async fn next_blob(
        &mut self,
        most: usize,
    ) -> Result<Option<(Digest, Option<Blob>)>, TreeError> {
        if self.fetched.is_empty() {
            self.fetch(most.min(BATCH)).await;
        }
        let Some((digest, content)) = self.fetched.pop_front() else {
            return Ok(None);
        };
        self.position = self.position.saturating_add(1);
        let found = match content {
            Some(content) => content.map(Blob::Bytes),
            None => self.store.get(&digest, 0).await,
        };
        match found {
            Ok(blob) => Ok(Some((digest, Some(blob)))),
            Err(error) if error.is_miss() && self.root != Some(digest) => Ok(Some((digest, None))),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the number of bytes that [`Self::next_nodes`] is about to fetch.
    pub(crate) fn bytes_to_fetch(&self) -> u64 {
        if self.fetched.is_empty() {
            self.batch(BATCH).iter().map(Digest::size).sum()
        } else {
            0
        }
    }

    /// Returns the next batch of the queue: one directory, or up to `most`.
    fn batch(&self, most: usize) -> Vec<Digest> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for number in self.position..self.queue.len() {
            let Some(digest) = self.queue.get(number) else {
                break;
            };
            bytes = digest.size().saturating_add(bytes);
            if !batch.is_empty() && (batch.len() >= most || bytes > BATCH_BYTES) {
                break;
            }
            batch.push(digest);
        }
        batch
    }

    async fn fetch(&mut self, most: usize) {
        let batch = self.batch(most);
        match batch.as_slice() {
            // Most results have no directories, and stores read even an empty batch on another thread.
            [] => {}
            [large] if large.size() > BATCH_BYTES => self.fetched.push_back((*large, None)),
            _ => {
                let contents = self.store.get_batch(&batch).await.into_iter().map(Some);
                self.fetched.extend(batch.into_iter().zip(contents));
            }
        }
    }
}

/// Decodes a directory within a memory limit, since a few encoded bytes may take many when decoded.
pub(super) fn decode(encoded: Bytes) -> Result<Directory, String> {
    Directory::decode_within(encoded, MAX_DECODED_BYTES).map_err(|error| error.to_string())
}
