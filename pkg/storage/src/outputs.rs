//! The outputs of an action result: every blob that it names.

use std::{collections::BTreeSet, fmt, mem, sync::Arc};

use gorego_limits::{Budget, Permit};
use reapi::v2::{self, ActionResult};

use crate::{
    BlobStore, Digest, DigestFunction, Error, Result,
    tree::{Node, Nodes, TreeError, TreeWalk},
};

/// The most memory for reading a tree: large directories are read in chunks, small ones in batches.
const READ_BYTES: u64 = 1024 * 1024;
/// The number of digests from trees in one batch.
pub(crate) const BATCH: usize = 1000;

/// The blobs that an action result names: output files, standard output and error, `Tree`s and the files in
/// them, root directories and everything below them. A blob counts even if the result also contains it
/// inline. Directories in a `Tree` do not count, since they need not be blobs.
pub struct Outputs {
    action: Digest,
    blobs: Arc<dyn BlobStore>,
    /// The budget for reading trees.
    memory: Budget,
    /// The digests in the result itself, which are returned first, and the trees to read.
    named: NamedBlobs,
    /// The directories below the roots, which are read after the trees.
    walk: TreeWalk,
    /// The tree or directory being read.
    open: Option<Nodes>,
    permit: Option<Permit>,
    /// The digests found in trees and not yet returned.
    batch: Vec<Digest>,
    /// The error to return after `batch`.
    error: Option<Error>,
}

impl Outputs {
    /// Creates the outputs of `result`. Its trees are read from `blobs` within `memory`.
    /// [`Error::Incomplete`] if the result contains a malformed digest.
    pub fn of(
        action: &Digest,
        result: &ActionResult,
        blobs: Arc<dyn BlobStore>,
        memory: Budget,
    ) -> Result<Self> {
        let named = NamedBlobs::of(action, result)?;
        Ok(Self {
            action: *action,
            walk: TreeWalk::below(Arc::clone(&blobs), action.function(), &named.roots),
            blobs,
            memory,
            named,
            open: None,
            permit: None,
            batch: Vec::new(),
            error: None,
        })
    }

    /// Returns the next digests: first all in the result itself, then those in its trees, about a thousand
    /// at a time; `None` at the end.
    ///
    /// [`Error::Incomplete`] for a tree or directory that is missing or malformed. The next call continues
    /// after it. A malformed blob is read to its end first, so that a corrupt one is reported as such.
    pub async fn next(&mut self) -> Result<Option<Vec<Digest>>> {
        if !self.named.blobs.is_empty() {
            return Ok(Some(mem::take(&mut self.named.blobs)));
        }
        while self.error.is_none() && self.batch.len() < BATCH {
            match self.step().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.error = Some(self.failed(error).await),
            }
        }
        if !self.batch.is_empty() {
            return Ok(Some(mem::take(&mut self.batch)));
        }
        self.error.take().map_or(Ok(None), Err)
    }

    /// Returns the error of the result for that of an output: incomplete, if the output is missing. Reads the open tree
    /// to its end first, since a corrupt one may name any digest.
    pub async fn failed_by(&mut self, error: Error) -> Error {
        let (error, outage) = match error {
            Error::Outage { miss, why } => (*miss, Some(why)),
            error => (error, None),
        };
        let error = match error {
            Error::NotFound(missing) => {
                let why = format!("blob {missing} is missing");
                self.incomplete(why, Some(missing)).await
            }
            error => error,
        };
        match outage {
            Some(why) => error.in_outage(why),
            None => error,
        }
    }

    async fn incomplete(&mut self, why: String, missing: Option<Digest>) -> Error {
        if let Some(mut open) = self.open.take()
            && let Err(error) = open.read_to_end().await
        {
            return error;
        }
        let action = self.action;
        Error::Incomplete {
            action,
            why,
            missing: missing.map(Box::new),
        }
    }

    async fn failed(&mut self, error: TreeError) -> Error {
        let TreeError::Store(error) = error else {
            return self.incomplete(error.to_string(), None).await;
        };
        // The open tree cannot be read any further.
        self.open = None;
        self.failed_by(error).await
    }

    /// Reads one node, or opens the next tree or directory. Returns `false` at the end.
    async fn step(&mut self) -> Result<bool, TreeError> {
        let Some(open) = &mut self.open else {
            return self.open_next().await;
        };
        match open.next().await? {
            Some(Node::File(file)) => self.batch.push(file),
            Some(Node::Directory(child)) if !open.is_tree() => {
                self.batch.push(child);
                self.walk.add(&child);
            }
            Some(Node::Directory(_)) => {}
            None => self.open = None,
        }
        Ok(true)
    }

    async fn open_next(&mut self) -> Result<bool, TreeError> {
        if let Some(tree) = self.named.trees.pop_first() {
            self.reserve(tree.size()).await?;
            let content = self.blobs.get(&tree, 0).await?;
            self.open = Some(Nodes::of_tree(tree, content));
            return Ok(true);
        }
        let next = self.walk.bytes_to_fetch();
        if next > 0 {
            self.reserve(next).await?;
        }
        let Some((digest, nodes)) = self.walk.next_nodes().await? else {
            self.permit = None;
            return Ok(false);
        };
        self.open = Some(nodes.ok_or(Error::NotFound(digest))?);
        Ok(true)
    }

    /// Reserves memory to read `bytes`. Releases the last permit first, so that no two lookups wait for each
    /// other.
    async fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.permit = None;
        let permit = self.memory.reserve(bytes.min(READ_BYTES)).await;
        self.permit = Some(permit.map_err(Error::no_memory)?);
        Ok(())
    }
}

/// Returns the digests in an action result itself, under the action's digest function; `None` if one is
/// malformed.
pub fn named_blobs(action: &Digest, result: &ActionResult) -> Option<Vec<Digest>> {
    NamedBlobs::of(action, result).ok().map(|named| named.blobs)
}

struct NamedBlobs {
    blobs: Vec<Digest>,
    trees: BTreeSet<Digest>,
    roots: Vec<Digest>,
}

impl NamedBlobs {
    fn of(action: &Digest, result: &ActionResult) -> Result<Self> {
        let function: DigestFunction = action.function();
        let parse = |output: &dyn fmt::Display, digest: Option<&v2::Digest>| {
            Digest::from_field(Some(function), digest).map_err(|error| Error::Incomplete {
                action: *action,
                why: format!("{output}: {error}"),
                missing: None,
            })
        };
        let mut blobs = Vec::new();
        for file in &result.output_files {
            blobs.push(parse(&file.path, file.digest.as_ref())?);
        }
        for (field, stream) in [
            ("stdout_digest", &result.stdout_digest),
            ("stderr_digest", &result.stderr_digest),
        ] {
            if stream.is_some() {
                blobs.push(parse(&field, stream.as_ref())?);
            }
        }
        let (mut trees, mut roots) = (BTreeSet::new(), Vec::new());
        for directory in &result.output_directories {
            let root = directory.root_directory_digest.as_ref();
            if root.is_some() {
                roots.push(parse(&directory.path, root)?);
            }
            let tree = directory.tree_digest.as_ref();
            if tree.is_some() || root.is_none() {
                trees.insert(parse(&directory.path, tree)?);
            }
        }
        blobs.extend(trees.iter().chain(&roots));
        Ok(Self {
            blobs,
            trees,
            roots,
        })
    }
}
