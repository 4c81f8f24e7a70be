//! Walking the directories below a root, breadth first (REAPI `GetTree`).

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use reapi::{shapes::Shaped as _, v2::Directory};

use super::{
    MAX_DIRECTORY_BYTES, TreeError,
    queue::DigestQueue,
    reader::{Reference, References},
};
use crate::{Blob, BlobStore, Digest, DigestFunction, Error, Result};

/// How many directories are fetched at once.
const BATCH: usize = 64;
/// The bytes of directories that are fetched at once. A larger directory is read while it arrives.
const BATCH_BYTES: u64 = 1024 * 1024;

/// The most memory that a decoded directory may take, in bytes: more than the largest real one takes.
const MAX_DECODED_BYTES: usize = 128 * 1024 * 1024;

/// The directories below a root: the root first, each once, those the store lacks left out.
/// Remembers 64 bytes or less for each (for hashes of 32 bytes).
#[derive(Debug)]
pub struct TreeWalk {
    store: Arc<dyn BlobStore>,
    root: Option<Digest>,
    queue: DigestQueue,
    /// The number in the queue of the first directory not yet returned.
    position: u32,
    /// How far the walk has ever come: what is before this is in the queue with its children.
    furthest: u32,
    /// The directories from `position` on that were fetched, or one too large to fetch.
    ahead: VecDeque<(Digest, Option<Result<Bytes>>)>,
}

impl TreeWalk {
    /// A walk that starts at `root`.
    pub fn new(store: Arc<dyn BlobStore>, root: Digest) -> Self {
        let mut walk = Self::below(store, root.function(), &[root]);
        walk.root = Some(root);
        walk
    }

    /// A walk over the directories below any of `roots`, which may be absent too.
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
            ahead: VecDeque::new(),
        }
    }

    /// How many directories the walk knows of: those it is past, and those it has yet to visit.
    pub const fn known(&self) -> u32 {
        self.queue.len()
    }

    /// How many directories the walk is past, absent ones included: where [`Self::skip_to`] can
    /// go on later.
    pub const fn position(&self) -> u32 {
        self.position
    }

    /// How many directories the walk has been past: within these, [`Self::skip_to`] reads nothing.
    pub const fn furthest(&self) -> u32 {
        self.furthest
    }

    /// Goes on at `position`. Directories where the walk has not been yet are read nevertheless,
    /// since only they tell what comes below them. Stops at the end of the tree.
    pub async fn skip_to(&mut self, position: u32) -> Result<(), TreeError> {
        self.return_to(position);
        while self.position < position {
            let most = position - self.position;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if self.next_encoded_of(most).await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Goes on at `position`, or at the furthest if the walk has not come so far. Gives up what was
    /// read ahead, and its memory.
    pub fn return_to(&mut self, position: u32) {
        self.position = self.furthest.min(position);
        self.ahead = VecDeque::new();
    }

    /// The next directory that is here. [`Error::NotFound`] when the root is not.
    pub async fn next(&mut self) -> Result<Option<(Digest, Directory)>, TreeError> {
        self.next_of(BATCH).await
    }

    /// As [`Self::next`] for a caller that wants no more than `most` of them, so that no more are
    /// read.
    pub async fn next_of(&mut self, most: usize) -> Result<Option<(Digest, Directory)>, TreeError> {
        while let Some((digest, found)) = self.next_encoded_of(most).await? {
            if let Some(encoded) = found {
                return match decode(encoded) {
                    Ok(decoded) => Ok(Some((digest, decoded))),
                    Err(why) => Err(TreeError::NotDirectory { digest, why }),
                };
            }
        }
        Ok(None)
    }

    /// Returns the next directory, present or not, to be read while it arrives. The walk enters
    /// those of its children that are passed to [`Self::add`].
    pub(crate) async fn next_open(
        &mut self,
    ) -> Result<Option<(Digest, Option<References>)>, TreeError> {
        let next = self.next_blob(BATCH).await?;
        Ok(next.map(|(digest, blob)| {
            let open = blob.map(|content| References::of_directory(digest, content));
            (digest, open)
        }))
    }

    /// Has a directory come later in the walk.
    pub(crate) fn add(&mut self, child: &Digest) {
        self.queue.push(child);
    }

    async fn next_encoded_of(
        &mut self,
        most: usize,
    ) -> Result<Option<(Digest, Option<Bytes>)>, TreeError> {
        let Some((digest, blob)) = self.next_blob(most).await? else {
            return Ok(None);
        };
        let encoded = match blob {
            Some(blob) => Some(self.whole(digest, blob).await?),
            None => None,
        };
        self.furthest = self.furthest.max(self.position);
        Ok(Some((digest, encoded)))
    }

    /// A directory's content. What it names comes later in the walk.
    async fn whole(&mut self, digest: Digest, blob: Blob) -> Result<Bytes, TreeError> {
        if digest.size() > MAX_DIRECTORY_BYTES {
            let bytes = digest.size();
            return Err(TreeError::TooLarge { digest, bytes });
        }
        let content = blob.into_bytes().await?;
        let mut references = References::of_directory(digest, Blob::Bytes(content.clone()));
        while let Some(reference) = references.next().await? {
            if let Reference::Directory(child) = reference {
                self.add(&child);
            }
        }
        Ok(content)
    }

    /// The next directory's content, if it is here.
    async fn next_blob(
        &mut self,
        most: usize,
    ) -> Result<Option<(Digest, Option<Blob>)>, TreeError> {
        if self.ahead.is_empty() {
            self.fetch(most.min(BATCH)).await;
        }
        let Some((digest, content)) = self.ahead.pop_front() else {
            return Ok(None);
        };
        self.position = self.position.saturating_add(1);
        let found = match content {
            Some(content) => content.map(Blob::Bytes),
            None => self.store.get(&digest, 0).await,
        };
        match found {
            Ok(blob) => Ok(Some((digest, Some(blob)))),
            Err(Error::NotFound(_)) if self.root != Some(digest) => Ok(Some((digest, None))),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the bytes that [`Self::next_open`] is about to fetch; 0 if none.
    pub(crate) fn bytes_to_fetch(&self) -> u64 {
        if self.ahead.is_empty() {
            self.batch(BATCH).iter().map(Digest::size).sum()
        } else {
            0
        }
    }

    /// The next directories of the queue that are fetched at once: one, or up to `most`.
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
        if let [large] = batch.as_slice()
            && large.size() > BATCH_BYTES
        {
            self.ahead.push_back((*large, None));
            return;
        }
        let contents = self.store.get_batch(&batch).await.into_iter().map(Some);
        self.ahead.extend(batch.into_iter().zip(contents));
    }
}

/// Decodes a directory of which a few bytes may unfold to many; an error says what is malformed.
pub(super) fn decode(encoded: Bytes) -> Result<Directory, String> {
    Directory::decode_within(encoded, MAX_DECODED_BYTES).map_err(|error| error.to_string())
}
