//! Reading what a `Tree` or a `Directory` names while it arrives.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use prost::Message as _;
use reapi::{
    v2::{self, Directory, DirectoryNode, FileNode, Tree},
    wire::{Header, Value},
};

use super::TreeError;
use crate::{Blob, Chunks, Digest};

/// More than any encoded digest has, in bytes.
const MAX_DIGEST: usize = 1024;
/// The end of a message that ends with the content.
const OPEN: u64 = u64::MAX;

/// A digest that a directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    File(Digest),
    Directory(Digest),
}

/// The digests that a directory names, or all directories of a `Tree`, in their order. Holds one chunk of
/// the content at a time: neither a directory nor a name in it can be too large.
pub(crate) struct References {
    blob: Digest,
    is_tree: bool,
    chunks: Chunks,
    /// Arrived, and not yet passed.
    buffer: Bytes,
    /// The part of the content that was passed, in bytes.
    passed: u64,
    /// The end of the present directory; `None` between those of a tree.
    directory_end: Option<u64>,
}

impl References {
    /// Reads the content of the `Tree` that `blob` names.
    pub(crate) fn of_tree(blob: Digest, content: Blob) -> Self {
        Self::new(blob, true, None, content)
    }

    /// Reads the content of the `Directory` that `blob` names.
    pub(crate) fn of_directory(blob: Digest, content: Blob) -> Self {
        Self::new(blob, false, Some(OPEN), content)
    }

    fn new(blob: Digest, is_tree: bool, directory_end: Option<u64>, content: Blob) -> Self {
        Self {
            blob,
            is_tree,
            chunks: content.into_chunks(),
            buffer: Bytes::new(),
            passed: 0,
            directory_end,
        }
    }

    /// The next digest.
    pub(crate) async fn next(&mut self) -> Result<Option<Reference>, TreeError> {
        loop {
            let Some(end) = self.directory_end else {
                match self.field(OPEN).await? {
                    None => return Ok(None),
                    Some(field) if holds(field, &[Tree::ROOT, Tree::CHILDREN]) => {
                        self.directory_end = Some(self.end_of(field));
                    }
                    Some(field) => self.pass(field.content_len()).await?,
                }
                continue;
            };
            match self.field(end).await? {
                None if !self.is_tree => return Ok(None),
                None => self.directory_end = None,
                Some(field) if holds(field, &[Directory::FILES]) => {
                    let digest = self.node(field, FileNode::DIGEST).await?;
                    return Ok(Some(Reference::File(digest)));
                }
                Some(field) if holds(field, &[Directory::DIRECTORIES]) => {
                    let digest = self.node(field, DirectoryNode::DIGEST).await?;
                    return Ok(Some(Reference::Directory(digest)));
                }
                Some(field) => self.pass(field.content_len()).await?,
            }
        }
    }

    /// Returns the digest of a node, which is its field `number`, and passes over the other fields.
    async fn node(&mut self, node: Header, number: u32) -> Result<Digest, TreeError> {
        let end = self.end_of(node);
        let mut digest: Option<v2::Digest> = None;
        while let Some(field) = self.field(end).await? {
            if field.number != number {
                self.pass(field.content_len()).await?;
                continue;
            }
            let Value::Delimited(len @ ..=MAX_DIGEST) = field.value else {
                return Err(self.malformed("a node has no valid digest"));
            };
            let encoded = self.take(len).await?;
            let merged = digest.get_or_insert_default().merge(encoded);
            merged.map_err(|why| self.malformed(why.to_string()))?;
        }
        Digest::from_field(Some(self.blob.function()), digest.as_ref())
            .map_err(|why| self.malformed(why.to_string()))
    }

    /// Reads the content to its end without looking at it.
    pub(crate) async fn drain(&mut self) -> Result<(), crate::Error> {
        while self.chunks.next().await.transpose()?.is_some() {}
        Ok(())
    }

    /// The end of the content of a field whose header was just read.
    const fn end_of(&self, field: Header) -> u64 {
        self.passed.saturating_add(field.content_len() as u64)
    }

    /// Passes the header of the next field of a message; `None` at the message's end.
    async fn field(&mut self, end: u64) -> Result<Option<Header>, TreeError> {
        loop {
            if self.passed == end {
                return Ok(None);
            }
            let read = Header::read(&self.buffer).map_err(|why| self.malformed(why))?;
            if let Some(header) = read {
                self.advance(header.len);
                if self.passed > end || self.end_of(header) > end.min(OPEN - 1) {
                    return Err(self.malformed("a field is cut off"));
                }
                return Ok(Some(header));
            }
            if !self.arrive().await? {
                let is_end = self.buffer.is_empty() && end == OPEN;
                return if is_end {
                    Ok(None)
                } else {
                    Err(self.cut_off())
                };
            }
        }
    }

    /// The next `len` bytes, which are few.
    async fn take(&mut self, len: usize) -> Result<Bytes, TreeError> {
        while self.buffer.len() < len {
            if !self.arrive().await? {
                return Err(self.cut_off());
            }
        }
        self.passed += len as u64;
        Ok(self.buffer.split_to(len))
    }

    async fn pass(&mut self, len: usize) -> Result<(), TreeError> {
        let mut left = len;
        loop {
            let passed = self.buffer.len().min(left);
            self.advance(passed);
            left -= passed;
            if left == 0 {
                return Ok(());
            }
            if !self.arrive().await? {
                return Err(self.cut_off());
            }
        }
    }

    fn advance(&mut self, len: usize) {
        self.buffer.advance(len);
        self.passed += len as u64;
    }

    /// Waits for the next chunk; `false` at the end.
    async fn arrive(&mut self) -> Result<bool, TreeError> {
        let Some(chunk) = self.chunks.next().await.transpose()? else {
            return Ok(false);
        };
        if self.buffer.is_empty() {
            self.buffer = chunk;
            return Ok(true);
        }
        let mut joined = BytesMut::with_capacity(self.buffer.len() + chunk.len());
        joined.extend_from_slice(&self.buffer);
        joined.extend_from_slice(&chunk);
        self.buffer = joined.freeze();
        Ok(true)
    }

    fn cut_off(&self) -> TreeError {
        self.malformed("it ends within a field")
    }

    /// Returns the error of a malformed blob, with the reason `why`.
    fn malformed(&self, why: impl Into<String>) -> TreeError {
        let (digest, why) = (self.blob, why.into());
        if self.is_tree {
            TreeError::NotTree { digest, why }
        } else {
            TreeError::NotDirectory { digest, why }
        }
    }
}

/// Whether the field is a message, and one of these.
fn holds(field: Header, numbers: &[u32]) -> bool {
    matches!(field.value, Value::Delimited(_)) && numbers.contains(&field.number)
}

impl fmt::Debug for References {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("References")
            .field("blob", &self.blob)
            .finish_non_exhaustive()
    }
}
