//! Reads the digests in a `Tree` or a `Directory` while its content arrives.

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use prost::Message as _;
use reapi::{
    v2::{self, Directory, DirectoryNode, FileNode, Tree},
    wire::{Header, Value},
};

use super::TreeError;
use crate::{Blob, Chunks, Digest};

/// The longest accepted encoding of a digest, in bytes; valid ones are shorter.
const MAX_DIGEST: usize = 1024;
/// The end offset of a message that ends with the content.
const OPEN: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File(Digest),
    Directory(Digest),
}

/// The nodes of a `Directory`, or of all directories of a `Tree`, in their order. Buffers one chunk of the
/// content, so that neither a directory nor a name in it can be too large.
pub(crate) struct Nodes {
    blob: Digest,
    is_tree: bool,
    chunks: Chunks,
    /// Content that has arrived and is not yet consumed.
    buffer: Bytes,
    /// The consumed bytes of the content.
    position: u64,
    /// The end offset of the current directory; `None` between the directories of a tree.
    directory_end: Option<u64>,
}

impl Nodes {
    pub(crate) fn of_tree(blob: Digest, content: Blob) -> Self {
        Self::new(blob, true, None, content)
    }

    pub(crate) fn of_directory(blob: Digest, content: Blob) -> Self {
        Self::new(blob, false, Some(OPEN), content)
    }

    fn new(blob: Digest, is_tree: bool, directory_end: Option<u64>, content: Blob) -> Self {
        Self {
            blob,
            is_tree,
            chunks: content.into_chunks(),
            buffer: Bytes::new(),
            position: 0,
            directory_end,
        }
    }

    pub(crate) const fn is_tree(&self) -> bool {
        self.is_tree
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Node>, TreeError> {
        loop {
            let Some(end) = self.directory_end else {
                match self.field(OPEN).await? {
                    None => return Ok(None),
                    Some(field) if is_message(field, &[Tree::ROOT, Tree::CHILDREN]) => {
                        self.directory_end = Some(self.end_of(field));
                    }
                    Some(field) => self.skip(field.content_len()).await?,
                }
                continue;
            };
            match self.field(end).await? {
                None if !self.is_tree => return Ok(None),
                None => self.directory_end = None,
                Some(field) if is_message(field, &[Directory::FILES]) => {
                    let digest = self.node(field, FileNode::DIGEST).await?;
                    return Ok(Some(Node::File(digest)));
                }
                Some(field) if is_message(field, &[Directory::DIRECTORIES]) => {
                    let digest = self.node(field, DirectoryNode::DIGEST).await?;
                    return Ok(Some(Node::Directory(digest)));
                }
                Some(field) => self.skip(field.content_len()).await?,
            }
        }
    }

    /// Returns the digest of a node, which is its field `number`. Skips the other fields.
    async fn node(&mut self, node: Header, number: u32) -> Result<Digest, TreeError> {
        let end = self.end_of(node);
        let mut digest: Option<v2::Digest> = None;
        while let Some(field) = self.field(end).await? {
            if field.number != number {
                self.skip(field.content_len()).await?;
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

    /// Reads the content to its end without parsing it, so that a corrupt blob is detected.
    pub(crate) async fn read_to_end(&mut self) -> Result<(), crate::Error> {
        while self.chunks.next().await.transpose()?.is_some() {}
        Ok(())
    }

    /// Returns the end offset of a field's content. The field's header is the last thing consumed.
    const fn end_of(&self, field: Header) -> u64 {
        self.position.saturating_add(field.content_len() as u64)
    }

    /// Consumes the header of the next field of a message. Returns `None` at the message's end.
    async fn field(&mut self, end: u64) -> Result<Option<Header>, TreeError> {
        loop {
            if self.position == end {
                return Ok(None);
            }
            let read = Header::read(&self.buffer).map_err(|why| self.malformed(why))?;
            if let Some(header) = read {
                self.advance(header.len);
                if self.position > end || self.end_of(header) > end.min(OPEN - 1) {
                    return Err(self.malformed("a field is cut off"));
                }
                return Ok(Some(header));
            }
            if !self.fill().await? {
                let is_end = self.buffer.is_empty() && end == OPEN;
                return if is_end {
                    Ok(None)
                } else {
                    Err(self.truncated())
                };
            }
        }
    }

    /// Consumes and returns the next `len` bytes. They are buffered, so `len` must be small.
    async fn take(&mut self, len: usize) -> Result<Bytes, TreeError> {
        while self.buffer.len() < len {
            if !self.fill().await? {
                return Err(self.truncated());
            }
        }
        self.position += len as u64;
        Ok(self.buffer.split_to(len))
    }

    async fn skip(&mut self, len: usize) -> Result<(), TreeError> {
        let mut left = len;
        loop {
            let skipped = self.buffer.len().min(left);
            self.advance(skipped);
            left -= skipped;
            if left == 0 {
                return Ok(());
            }
            if !self.fill().await? {
                return Err(self.truncated());
            }
        }
    }

    fn advance(&mut self, len: usize) {
        self.buffer.advance(len);
        self.position += len as u64;
    }

    /// Appends the next chunk to the buffer. Returns `false` at the content's end.
    async fn fill(&mut self) -> Result<bool, TreeError> {
        let Some(chunk) = self.chunks.next().await.transpose()? else {
            return Ok(false);
        };
        self.buffer = if self.buffer.is_empty() {
            chunk
        } else {
            [&*self.buffer, &*chunk].concat().into()
        };
        Ok(true)
    }

    fn truncated(&self) -> TreeError {
        self.malformed("it ends within a field")
    }

    fn malformed(&self, why: impl Into<String>) -> TreeError {
        TreeError::Malformed {
            blob: self.blob,
            message: if self.is_tree { "Tree" } else { "Directory" },
            why: why.into(),
        }
    }
}

/// Whether the field is length-delimited and has one of these numbers.
fn is_message(field: Header, numbers: &[u32]) -> bool {
    matches!(field.value, Value::Delimited(_)) && numbers.contains(&field.number)
}
