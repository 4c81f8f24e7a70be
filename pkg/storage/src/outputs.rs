//! The blobs that an action result names.

use std::{collections::BTreeSet, fmt, mem, sync::Arc};

use gorego_limits::{Budget, Permit};
use reapi::v2::{self, ActionResult};

use crate::{
    BlobStore, Digest, DigestFunction, Error, Result,
    tree::{Reference, References, TreeError, TreeWalk},
};

/// Bytes that reading one tree holds at a time: large directories pass in chunks, small ones come in batches.
const HELD: u64 = 1024 * 1024;
/// The number of digests from inside trees that are returned together.
pub(crate) const BATCH: usize = 1000;

/// Every blob that an action result names: output files, standard output and error, `Tree`s and the
/// files in them, root directories and all that is below them. What a result carries inline is no
/// substitute for a blob that it names. Directories inside a `Tree` need not be blobs.
pub struct Outputs {
    action: Digest,
    blobs: Arc<dyn BlobStore>,
    /// For the directories that are being read.
    memory: Budget,
    /// The digests in the result itself; returned first.
    named: Vec<Digest>,
    trees: BTreeSet<Digest>,
    /// The directories below the roots; read after the trees.
    walk: TreeWalk,
    /// The tree or directory that is being read.
    open: Option<Open>,
    permit: Option<Permit>,
    /// Found in trees, and not yet returned.
    batch: Vec<Digest>,
    /// Returned after `batch`.
    error: Option<Error>,
}

struct Open {
    references: References,
    is_tree: bool,
}

impl Outputs {
    /// The outputs of `result`, whose trees are read from `blobs` within `memory`.
    /// [`Error::Incomplete`] where the result has a malformed digest.
    pub fn of(
        action: &Digest,
        result: &ActionResult,
        blobs: Arc<dyn BlobStore>,
        memory: Budget,
    ) -> Result<Self> {
        let function = action.function();
        let Named {
            blobs: named,
            trees,
            roots,
        } = Named::of(action, result)?;
        Ok(Self {
            action: *action,
            walk: TreeWalk::below(Arc::clone(&blobs), function, &roots),
            blobs,
            memory,
            named,
            trees,
            open: None,
            permit: None,
            batch: Vec::new(),
            error: None,
        })
    }

    /// Returns the next digests: first all that the result itself names, then those in its trees, about
    /// a thousand at a time; `None` at the end.
    ///
    /// [`Error::Incomplete`] for a tree or directory that is missing or malformed. The next call goes on
    /// behind it. Malformed content is read to its end first, where it proves to be the blob's.
    pub async fn next(&mut self) -> Result<Option<Vec<Digest>>> {
        if !self.named.is_empty() {
            return Ok(Some(mem::take(&mut self.named)));
        }
        loop {
            if self.batch.len() >= BATCH || self.error.is_some() && !self.batch.is_empty() {
                return Ok(Some(mem::take(&mut self.batch)));
            }
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            match self.step().await {
                Ok(true) => {}
                Ok(false) if self.batch.is_empty() => return Ok(None),
                Ok(false) => return Ok(Some(mem::take(&mut self.batch))),
                Err(error) => self.error = Some(self.failed(error).await),
            }
        }
    }

    /// Returns the error of a result without `missing`, which was found here. The tree that is being read
    /// is read to its end first: corrupt content may name anything.
    pub async fn incomplete_without(&mut self, missing: &Digest) -> Error {
        if let Some(mut open) = self.open.take()
            && let Err(error) = open.references.drain().await
        {
            return error;
        }
        self.lacks(missing)
    }

    fn lacks(&self, missing: &Digest) -> Error {
        Error::Incomplete {
            action: self.action,
            why: format!("blob {missing} is missing"),
        }
    }

    async fn failed(&mut self, error: TreeError) -> Error {
        let open = self.open.take();
        match error {
            TreeError::Store(Error::NotFound(missing)) => self.lacks(&missing),
            TreeError::Store(error) => error,
            malformed => {
                if let Some(mut open) = open
                    && let Err(error) = open.references.drain().await
                {
                    return error;
                }
                Error::Incomplete {
                    action: self.action,
                    why: malformed.to_string(),
                }
            }
        }
    }

    /// Reads one reference, or opens what is read next; `false` at the end.
    async fn step(&mut self) -> Result<bool, TreeError> {
        let Some(open) = &mut self.open else {
            return self.open_next().await;
        };
        match open.references.next().await? {
            Some(Reference::File(file)) => self.batch.push(file),
            Some(Reference::Directory(child)) if !open.is_tree => {
                self.batch.push(child);
                self.walk.add(&child);
            }
            Some(Reference::Directory(_)) => {}
            None => self.open = None,
        }
        Ok(true)
    }

    async fn open_next(&mut self) -> Result<bool, TreeError> {
        if let Some(tree) = self.trees.pop_first() {
            self.reserve(tree.size()).await?;
            let content = self.blobs.get(&tree, 0).await?;
            self.open = Some(Open {
                references: References::of_tree(tree, content),
                is_tree: true,
            });
            return Ok(true);
        }
        let next = self.walk.bytes_to_fetch();
        if next > 0 {
            self.reserve(next).await?;
        }
        let Some((digest, found)) = self.walk.next_open().await? else {
            self.permit = None;
            return Ok(false);
        };
        self.open = Some(Open {
            references: found.ok_or(Error::NotFound(digest))?,
            is_tree: false,
        });
        Ok(true)
    }

    /// Reserves memory to read so many bytes. Nothing is held while waiting, so that no two results wait
    /// for each other.
    async fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.permit = None;
        let permit = self.memory.reserve(bytes.min(HELD)).await;
        self.permit = Some(permit.map_err(Error::no_memory)?);
        Ok(())
    }
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs")
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}

/// Returns the digests in an action result itself, read as those of the action's function; `None` where
/// one is malformed.
pub fn named_blobs(action: &Digest, result: &ActionResult) -> Option<Vec<Digest>> {
    Named::of(action, result).ok().map(|named| named.blobs)
}

/// The digests in an action result itself.
struct Named {
    /// All of them.
    blobs: Vec<Digest>,
    /// Those of `Tree`s.
    trees: BTreeSet<Digest>,
    /// Those of root directories.
    roots: Vec<Digest>,
}

impl Named {
    fn of(action: &Digest, result: &ActionResult) -> Result<Self> {
        let function: DigestFunction = action.function();
        let parse = |what: &dyn fmt::Display, digest: Option<&v2::Digest>| {
            Digest::from_field(Some(function), digest).map_err(|error| Error::Incomplete {
                action: *action,
                why: format!("{what}: {error}"),
            })
        };
        let mut blobs = Vec::new();
        for file in &result.output_files {
            blobs.push(parse(&file.path, file.digest.as_ref())?);
        }
        for (what, stream) in [
            ("stdout_digest", &result.stdout_digest),
            ("stderr_digest", &result.stderr_digest),
        ] {
            if stream.is_some() {
                blobs.push(parse(&what, stream.as_ref())?);
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
