//! The trait between an executor and the store: blobs become files of an action's tree, and files become blobs.

use std::{
    any::Any, ffi::OsStr, ffi::OsString, fmt, fs, os::fd::BorrowedFd, os::fd::OwnedFd, sync::Arc,
};

use async_trait::async_trait;
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};

use crate::{Digest, DigestFunction, Error, Result};

/// The mode of executable inputs, and of the files of blobs.
const EXECUTABLE: Mode = Mode::from_bits_retain(0o555);
/// The mode of other inputs.
const READABLE: Mode = Mode::from_bits_retain(0o444);

/// A store whose blobs are linked into the trees of actions.
///
/// An action pins all its inputs at once, links them, runs, checks them by [`Self::altered`], and drops the pins.
///
/// The methods with a default call [`Self::inner`]. Without one, they are those of a store whose inputs are all copies,
/// and which never loses blobs.
#[async_trait]
pub trait Links: Send + Sync + fmt::Debug + 'static {
    /// Returns the store that has the files of the blobs, if it is another one.
    fn inner(&self) -> Option<&dyn Links> {
        None
    }

    /// Makes the blobs present in the local tier, and protects them from eviction until the pins are dropped. Extends
    /// their leases. Fetches missing ones from a slower tier, if there is one.
    ///
    /// Room for all of them is reserved first. While pins of other callers leave too little, this waits and holds
    /// nothing, first come, first served: a caller that keeps pins while it waits for others can cause a deadlock.
    /// Blobs that several callers pin count once. Cancel-safe.
    async fn pin(&self, digests: &[Digest]) -> Result<Pins, PinError> {
        match self.inner() {
            Some(inner) => inner.pin(digests).await,
            None => Ok(Pins::new(())),
        }
    }

    /// Returns the bytes that the first waiting pin lacks; zero if none waits.
    fn lacking(&self) -> u64 {
        self.inner().map_or(0, Links::lacking)
    }

    /// Creates an input of an action: the file `name` in `dir`, with the content of a pinned blob. Its mode is 0555 if
    /// it is `executable`, else 0444; it must not be changed. Blocks.
    ///
    /// Inputs are hard links where possible: executable ones to the file of the blob, others to one copy of it, its
    /// twin. A blob that is linked more often than the file system permits, is on another file system, or was altered
    /// by an action that runs, is copied, and so is one without room for its twin.
    ///
    /// `Error::NotFound` if the file of the blob was removed or is corrupt; another pin fetches it again. Other errors
    /// concern `name`, which must not exist. After an error there is no file.
    fn link(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<LinkedAs> {
        match self.inner() {
            Some(inner) => inner.link(digest, dir, name, executable),
            None => self
                .copy(digest, dir, name, executable)
                .map(|()| LinkedAs::Copy),
        }
    }

    /// Creates an input like [`Self::link`], but never as a link, so that it may be changed: for files with other
    /// modes or times, second names of a blob in a tree, and repetitions of an action that altered its inputs.
    fn copy(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<()> {
        match self.inner() {
            Some(inner) => inner.copy(digest, dir, name, executable),
            None => Err(Error::NotFound(*digest)),
        }
    }

    /// Returns those of `digests` whose content may have been wrong while they were linked: the result of the action
    /// is not to be trusted. Call it for all blobs that were [`LinkedAs::Link`], after the end of the action's last
    /// process and before the pins are dropped. Blocks.
    ///
    /// A blob or twin whose mode, owner, size or time of change differs is hashed. A corrupt blob is quarantined, so
    /// that it is missing, and a corrupt twin removed; one with the right content gets its mode, owner and time back.
    /// Content that was changed, with its time restored, is not detected.
    fn altered(&self, digests: &[Digest]) -> Vec<Digest> {
        self.inner()
            .map_or_else(Vec::new, |inner| inner.altered(digests))
    }

    /// Returns how many blobs were found corrupt or missing so far. As long as it stays the same, files that were
    /// linked under pins that are still held have the right content.
    fn losses(&self) -> u64 {
        self.inner().map_or(0, Links::losses)
    }

    /// Stores files as blobs, as durably as uploads, and returns a digest for each, in order. Waits for eviction if
    /// there is no room. What is stored is what was hashed, even if the file changes meanwhile. The caller limits their
    /// number.
    ///
    /// `Error::Source` for a file that cannot be read and anything but a regular file, `Error::Full` without room. After
    /// an error the file stays where it was, if possible.
    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>>;
}

/// Pinned blobs, released when this is dropped.
#[must_use = "the blobs are released when this is dropped"]
pub struct Pins {
    _guard: Box<dyn Any + Send + Sync>,
}

impl Pins {
    /// Wraps a store's guard, which releases the blobs when it is dropped.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self {
            _guard: Box::new(guard),
        }
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").finish_non_exhaustive()
    }
}

/// An error of [`Links::pin`]. Nothing is pinned.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PinError {
    /// These are all missing blobs, each once.
    #[error("missing blobs: {}", list(.0))]
    Missing(Vec<Digest>),
    /// The blobs exceed what the local tier may ever hold at once. Blobs that find no room now are `Error::Full`.
    #[error("no room for {bytes} bytes of blobs at once: {why}")]
    Full {
        /// The room of all blobs, in bytes.
        bytes: u64,
        /// The limit that is exceeded.
        why: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Lists the first few of many blobs.
fn list(digests: &[Digest]) -> String {
    const SHOWN: usize = 3;
    let shown = digests.iter().take(SHOWN).map(Digest::to_string);
    let more = digests.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("{more} more"));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// The form of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkedAs {
    /// A hard link to the file of the blob, or to its twin: a write into it is one into the inputs of others.
    Link,
    /// A file of its own.
    Copy,
}

/// A file that becomes a blob.
#[derive(Debug)]
pub enum Adopt {
    /// The file of this name, which no process has open for writing. It is moved out of its directory where possible,
    /// and copied if it has several links, belongs to another user, or is on another file system. It may also stay
    /// if its blob is stored already.
    Move {
        /// The directory.
        dir: Arc<OwnedFd>,
        /// The name in it, without slashes.
        name: OsString,
    },
    /// An open file that may still be written. It is copied, by reference where the file system can.
    Copy(fs::File),
}

impl Adopt {
    /// Opens the file for reading; returns its status, too. `Error::Source` for anything but a regular file. Never
    /// follows a link. Blocks.
    pub fn open(&self) -> Result<(fs::File, rustix::fs::Stat)> {
        let open = || {
            let file = match self {
                Self::Copy(file) => file.try_clone().map_err(Error::source)?,
                Self::Move { dir, name } => {
                    let safe = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                    let flags = OFlags::RDONLY | safe;
                    rustix::fs::openat(dir, &**name, flags, Mode::empty())
                        .map_err(Error::source)?
                        .into()
                }
            };
            let stat = rustix::fs::fstat(&file).map_err(Error::source)?;
            Ok((file, stat))
        };
        match open()? {
            (_, stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                Err(Error::source(Errno::INVAL))
            }
            opened => Ok(opened),
        }
    }
}

/// Creates the empty file of an input, open for writing, with its mode whatever the umask. Blocks.
pub fn create_input(dir: BorrowedFd<'_>, name: &OsStr, executable: bool) -> Result<fs::File> {
    let mode = if executable { EXECUTABLE } else { READABLE };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let created = rustix::fs::openat(dir, name, flags, mode)
        .and_then(|file| rustix::fs::fchmod(&file, mode).map(|()| file.into()));
    created.map_err(|errno| Error::io("creating", name, errno.into()))
}
