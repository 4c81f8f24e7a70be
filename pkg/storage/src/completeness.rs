//! An action result is worth something only while everything that it names can be fetched.

use std::{collections::BTreeSet, fmt, mem, sync::Arc};

use async_trait::async_trait;
use gorego_limits::Budget;
use reapi::v2::{self, ActionResult};

use crate::{
    ActionCache, BlobStore, Digest, DigestFunction, Error, Result,
    tree::{Reference, References, TreeError, TreeWalk},
};

/// Bytes that reading one tree holds at a time: large directories pass in chunks, small ones come in batches.
const HELD: u64 = 1024 * 1024;
/// Memory for all trees together, in bytes, where no other is given.
const DEFAULT_MEMORY: u64 = 32 * HELD;
/// How many digests from inside trees are gathered before the store is asked about them.
const BATCH: usize = 1000;

/// An action cache that hides the results whose outputs are not all in a store: files, standard
/// output and error, `Tree`s, what is inside them, and what is below root directories. What a
/// result carries inline is no substitute for a blob that it names. A lookup leases them all.
pub struct CompletenessChecking<A: ?Sized> {
    results: Arc<A>,
    blobs: Arc<dyn BlobStore>,
    /// For the directories that are being looked through.
    memory: Budget,
    /// Whether the outputs of a new result are looked up as well.
    leases_puts: bool,
}

impl<A: ActionCache + ?Sized> CompletenessChecking<A> {
    /// Shows those of `results` whose outputs are all in `blobs`.
    pub fn new(results: Arc<A>, blobs: Arc<dyn BlobStore>) -> Self {
        Self {
            results,
            blobs,
            memory: Budget::memory("memory for trees", DEFAULT_MEMORY),
            leases_puts: false,
        }
    }

    /// Leases the outputs of results that are put, too.
    #[must_use]
    pub fn leasing_puts(self) -> Self {
        let leases_puts = true;
        Self {
            leases_puts,
            ..self
        }
    }

    /// The same, within memory that is shared with others.
    #[must_use]
    pub fn within(self, memory: Budget) -> Self {
        Self { memory, ..self }
    }

    async fn check(
        &self,
        function: DigestFunction,
        result: &ActionResult,
    ) -> Result<(), Incomplete> {
        let named = Named::of(function, result)?;
        let mut check = Check {
            blobs: &self.blobs,
            memory: &self.memory,
            pending: named.blobs,
        };
        check.flush().await?;
        let looked = check.inside(function, named.trees, &named.roots).await;
        if !matches!(looked, Err(Incomplete::Unknown(_))) {
            // Also where the rest is missing or malformed: the store may count on hearing of all that
            // was found.
            check.flush().await?;
        }
        looked
    }
}

#[async_trait]
impl<A: ActionCache + ?Sized> ActionCache for CompletenessChecking<A> {
    async fn get(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let Some(result) = self.results.get(instance, action).await? else {
            return Ok(None);
        };
        match self.check(action.function(), &result).await {
            Ok(()) => Ok(Some(result)),
            Err(Incomplete::Missing(digest)) => {
                tracing::debug!(instance, %action, missing = %digest, "action result is incomplete");
                Ok(None)
            }
            Err(Incomplete::Malformed(why)) => {
                tracing::info!(instance, %action, why, "action result is malformed");
                Ok(None)
            }
            Err(Incomplete::Unknown(error)) => Err(error),
        }
    }

    async fn size(&self, instance: &str, action: &Digest) -> Result<u64> {
        self.results.size(instance, action).await
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        // A client that was told of the result counts on its outputs as after a hit. Whether they are
        // all here is for the next lookup to say.
        if self.leases_puts
            && let Err(Incomplete::Unknown(error)) = self.check(action.function(), &result).await
        {
            tracing::debug!(instance, %action, %error, "outputs of a new action result get no lease");
        }
        self.results.put(instance, action, result).await
    }
}

impl<A: fmt::Debug + ?Sized> fmt::Debug for CompletenessChecking<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletenessChecking")
            .field("results", &&*self.results)
            .field("blobs", &self.blobs)
            .finish_non_exhaustive()
    }
}

/// Why a result is not shown.
enum Incomplete {
    /// A blob that it names is not here.
    Missing(Digest),
    /// It names something that can be no blob, tree or directory.
    Malformed(String),
    /// The store could not tell.
    Unknown(Error),
}

impl From<Error> for Incomplete {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(digest) => Self::Missing(digest),
            other => Self::Unknown(other),
        }
    }
}

impl From<TreeError> for Incomplete {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Store(error) => error.into(),
            malformed => Self::Malformed(malformed.to_string()),
        }
    }
}

/// The digests in an action result itself, read as those of `function`; `None` where one is malformed.
pub fn named_blobs(function: DigestFunction, result: &ActionResult) -> Option<Vec<Digest>> {
    Named::of(function, result).ok().map(|named| named.blobs)
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
    fn of(function: DigestFunction, result: &ActionResult) -> Result<Self, Incomplete> {
        let parse = |what: &dyn fmt::Display, digest: Option<&v2::Digest>| {
            Digest::from_field(Some(function), digest)
                .map_err(|error| Incomplete::Malformed(format!("{what}: {error}")))
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

/// Gathers digests, and asks the store about many at once.
struct Check<'a> {
    blobs: &'a Arc<dyn BlobStore>,
    memory: &'a Budget,
    pending: Vec<Digest>,
}

impl Check<'_> {
    async fn flush(&mut self) -> Result<(), Incomplete> {
        let pending = mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        match self.blobs.find_missing(&pending).await?.first() {
            None => Ok(()),
            Some(missing) => Err(Incomplete::Missing(*missing)),
        }
    }

    async fn add(&mut self, digest: Digest) -> Result<(), Incomplete> {
        self.pending.push(digest);
        if self.pending.len() >= BATCH {
            self.flush().await?;
        }
        Ok(())
    }

    /// Checks what is in the `Tree`s and below the root directories.
    async fn inside(
        &mut self,
        function: DigestFunction,
        trees: BTreeSet<Digest>,
        roots: &[Digest],
    ) -> Result<(), Incomplete> {
        for tree in trees {
            self.tree(tree).await?;
        }
        self.directories(function, roots).await
    }

    /// Checks the files in a `Tree`. Its directories need not be blobs of their own.
    async fn tree(&mut self, tree: Digest) -> Result<(), Incomplete> {
        let bytes = tree.size().min(HELD);
        let _permit = self.memory.reserve(bytes).await.map_err(Error::no_memory)?;
        let content = self.blobs.get(&tree, 0).await?;
        let mut references = References::of_tree(tree, content);
        while let Some(reference) = references.next().await? {
            if let Reference::File(file) = reference {
                self.add(file).await?;
            }
        }
        Ok(())
    }

    /// Checks the directories below `roots` and the files in them.
    async fn directories(
        &mut self,
        function: DigestFunction,
        roots: &[Digest],
    ) -> Result<(), Incomplete> {
        let mut walk = TreeWalk::below(Arc::clone(self.blobs), function, roots);
        let mut permit = None;
        loop {
            let next = walk.bytes_to_fetch();
            if next > 0 {
                // Nothing is held while waiting, so that no two checks wait for each other.
                drop(permit.take());
                permit = Some(
                    self.memory
                        .reserve(next.min(HELD))
                        .await
                        .map_err(Error::no_memory)?,
                );
            }
            let Some((digest, found)) = walk.next_open().await? else {
                return Ok(());
            };
            let mut references = found.ok_or(Incomplete::Missing(digest))?;
            while let Some(reference) = references.next().await? {
                match reference {
                    Reference::File(file) => self.add(file).await?,
                    // Looked up before its own turn comes, so that a directory that names millions which
                    // are missing fills no memory with them.
                    Reference::Directory(child) => {
                        self.add(child).await?;
                        walk.add(&child);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
