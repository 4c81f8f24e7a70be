//! Reading of actions, commands and input trees from the cache, within bounds. The reads do not count as uses.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use gorego_storage::{Digest, DigestFunction, Error, Peek};
use reapi::{
    shapes::Shaped,
    v2::{self, Action, ActionResult, Command, Directory},
};

use super::known::parse;

/// The largest action, in bytes.
const MAX_ACTION: u64 = 64 * 1024;
/// The largest command or directory, in bytes.
const MAX_MESSAGE: u64 = 1024 * 1024;
/// The most memory of a decoded message, in bytes.
const MAX_DECODED: usize = 16 * 1024 * 1024;

/// The stores that observers read from, the local tier first.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    pub(crate) stores: Vec<Arc<dyn Peek>>,
    /// Set if a backing cache may have blobs that the stores lack.
    pub(crate) is_local_only: bool,
}

/// An action and its command.
#[derive(Clone, Debug, Default)]
pub(crate) struct ActionParts {
    pub(crate) action: Action,
    pub(crate) command: Command,
    /// The root of the inputs.
    pub(crate) inputs: Option<Digest>,
}

/// The reason why a blob cannot be shown or compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// The blob is not in the stores that are read, which have this name.
    #[error("{0} is not in {1}")]
    Missing(String, &'static str),
    /// The blob is too large, malformed, or cannot be read.
    #[error("{0}")]
    Failed(String),
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File { digest: String, executable: bool },
    Directory(Option<Digest>),
    Symlink(String),
}

impl Contents {
    /// Returns the name of the stores that are read.
    pub(crate) const fn place(&self) -> &'static str {
        if self.is_local_only {
            "the local tier"
        } else {
            "the cache"
        }
    }

    /// Reads an action and its command.
    pub(crate) async fn action(&self, name: &str) -> Result<ActionParts, Unreadable> {
        let digest = parse(name).ok_or_else(|| {
            Unreadable::Failed(format!("{name} is no digest; accepted: hash/size"))
        })?;
        // The hash alone does not always identify the function.
        let mut read = Err(Unreadable::Missing(format!("action {name}"), self.place()));
        for digest in [Some(digest), digest.other()].into_iter().flatten() {
            read = self.message::<Action>("action", &digest, MAX_ACTION).await;
            if let Ok(action) = read {
                return self.parts(action, digest.function()).await;
            }
        }
        read.map(|action| ActionParts {
            action,
            ..ActionParts::default()
        })
    }

    async fn parts(
        &self,
        action: Action,
        function: DigestFunction,
    ) -> Result<ActionParts, Unreadable> {
        let digest = |what, digest: Option<&v2::Digest>| {
            Digest::from_field(Some(function), digest)
                .map_err(|why| Unreadable::Failed(format!("{what} of the action: {why}")))
        };
        let command = digest("the command", action.command_digest.as_ref())?;
        let command = self.message("command", &command, MAX_MESSAGE).await?;
        let inputs = digest("the input root", action.input_root_digest.as_ref()).ok();
        Ok(ActionParts {
            action,
            command,
            inputs,
        })
    }

    /// Reads a result under the instance name; the function of `name` is inferred.
    pub(crate) async fn result(&self, instance: &str, name: &str) -> Option<ActionResult> {
        let digest = parse(name)?;
        for digest in [Some(digest), digest.other()].into_iter().flatten() {
            for store in &self.stores {
                if let Ok(result) = store.peek_result(instance, &digest).await {
                    return Some(result);
                }
            }
        }
        None
    }

    /// Reads the entries of a directory, by name.
    pub(crate) async fn directory(
        &self,
        digest: &Digest,
    ) -> Result<BTreeMap<String, Node>, Unreadable> {
        let directory: Directory = self.message("directory", digest, MAX_MESSAGE).await?;
        let function = Some(digest.function());
        let files = directory.files.into_iter().map(|file| {
            let digest = file.digest.unwrap_or_default();
            let node = Node::File {
                digest: format!("{}/{}", digest.hash, digest.size_bytes),
                executable: file.is_executable,
            };
            (file.name, node)
        });
        let directories = directory.directories.into_iter().map(|child| {
            let digest = Digest::from_field(function, child.digest.as_ref());
            (child.name, Node::Directory(digest.ok()))
        });
        let links = directory.symlinks.into_iter();
        let links = links.map(|link| (link.name, Node::Symlink(link.target)));
        Ok(files.chain(directories).chain(links).collect())
    }

    async fn message<M: Shaped>(
        &self,
        what: &str,
        digest: &Digest,
        most: u64,
    ) -> Result<M, Unreadable> {
        if digest.size() > most {
            let why = format!("{what} {digest} is larger than {most} bytes");
            return Err(Unreadable::Failed(why));
        }
        let content = self.blob(what, digest).await?;
        M::decode_within(content, MAX_DECODED)
            .map_err(|why| Unreadable::Failed(format!("{what} {digest} is malformed: {why}")))
    }

    async fn blob(&self, what: &str, digest: &Digest) -> Result<Bytes, Unreadable> {
        if digest.is_empty_blob() {
            return Ok(Bytes::new());
        }
        let mut failed = Unreadable::Missing(format!("{what} {digest}"), self.place());
        for store in &self.stores {
            match store.peek_blob(digest).await {
                Ok(content) => return Ok(content),
                Err(Error::NotFound(_)) => {}
                Err(error) => {
                    failed = Unreadable::Failed(format!("{what} {digest} cannot be read: {error}"));
                }
            }
        }
        Err(failed)
    }
}

impl Node {
    /// Describes the entry, so that different ones have different descriptions.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::File {
                digest,
                executable: false,
            } => digest.clone(),
            Self::File { digest, .. } => format!("{digest}, executable"),
            Self::Directory(Some(digest)) => format!("directory {digest}"),
            Self::Directory(None) => "directory".to_owned(),
            Self::Symlink(target) => format!("link to {target}"),
        }
    }
}
