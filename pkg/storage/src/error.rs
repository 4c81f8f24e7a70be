//! What can go wrong in a store.

use std::{io, path::PathBuf, sync::Arc};

use gorego_limits::Full;
use rustix::io::Errno;

use crate::Digest;

/// A store's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that a caller's own stream of content ended with.
pub type SourceError = Arc<dyn std::error::Error + Send + Sync>;

/// Why a store could not do what it was asked. `Clone`, since several waiters may share one cause.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The blob is not here.
    #[error("blob {0} not found")]
    NotFound(Digest),
    /// There is no result of the action.
    #[error("no result of action {0}")]
    NoResult(Digest),
    /// The action's result names a blob that is missing, or is malformed.
    #[error("result of action {action} is incomplete: {why}")]
    Incomplete {
        /// The action.
        action: Digest,
        /// The missing blob, or the malformed part.
        why: String,
    },
    /// The content's size or hash differs from its digest; nothing was stored.
    #[error("content does not match digest {expected}: it is {actual}")]
    Mismatch {
        /// The digest that was promised.
        expected: Digest,
        /// What came: a digest, or a size beyond which nothing was hashed.
        actual: String,
    },
    /// A resumed upload's content has another hash than its digest; it was dropped and has to
    /// start anew.
    #[error("resumed upload does not match digest {expected}: it is {actual}; upload it anew")]
    ResumedMismatch {
        /// The digest that was promised.
        expected: Digest,
        /// What the kept and the new bytes together are.
        actual: String,
    },
    /// An offset beyond the blob's end.
    #[error("offset {offset} is past the end of blob {digest}")]
    OffsetPastEnd {
        /// The blob.
        digest: Digest,
        /// The offset asked for.
        offset: u64,
    },
    /// An upload that goes on from further than what was kept of it.
    #[error("upload of {digest} cannot go on from {offset}: {committed} bytes of it are here")]
    UploadOffset {
        /// The blob.
        digest: Digest,
        /// Where the client wanted to go on.
        offset: u64,
        /// Where it could have.
        committed: u64,
    },
    /// A newer attempt at the same upload took it over.
    #[error("upload of {0} was taken over by a newer attempt")]
    Superseded(Digest),
    /// No room, even after eviction.
    #[error("no room for {bytes} bytes of {what}: {why}")]
    Full {
        /// A digest or a path.
        what: String,
        /// How much room was asked for.
        bytes: u64,
        /// Which limit stands in the way.
        why: String,
    },
    /// The store is out of reach or shutting down; the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The backing cache refused, or answered what it should not; the same call would fare alike.
    #[error("backing cache {peer}: {message} ({code:?})")]
    Refused {
        /// Which backing cache.
        peer: Arc<str>,
        /// The code of its answer.
        code: tonic::Code,
        /// What was asked, and the message of its answer.
        message: String,
        /// Whether a proxy in front of the peer answered, with an HTTP page. Such a refusal may pass.
        foreign: bool,
    },
    /// The caller's content could not be read.
    #[error("reading the content: {0}")]
    Source(#[source] SourceError),
    /// The disk failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a participle.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's word.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// Memory that calls share did not become free in time.
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    pub fn no_memory(why: Full) -> Self {
        Self::Unavailable(why.to_string())
    }

    /// An I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: Arc::new(source),
        }
    }

    /// Reports whether a lookup ended without a result of the action, or with one that is of no use.
    pub const fn is_result_miss(&self) -> bool {
        matches!(self, Self::NoResult(_) | Self::Incomplete { .. })
    }

    /// Wraps an error of the caller's own stream.
    pub fn source(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Source(Arc::new(error))
    }

    /// Whether it may tell of the state of a store, or of what stands before it, rather than of what was
    /// asked: out of reach, short of something, not accepting this proxy for now, a disk in trouble.
    pub fn may_pass(&self) -> bool {
        use tonic::Code::{InvalidArgument, OutOfRange};
        match self {
            Self::Unavailable(_) | Self::Io { .. } | Self::Full { .. } => true,
            Self::Refused { code, foreign, .. } => {
                *foreign || !matches!(code, InvalidArgument | OutOfRange)
            }
            _ => false,
        }
    }

    /// Whether it tells of a store as a whole, or of what this proxy may do there, and nothing of what was
    /// asked.
    pub fn is_general(&self) -> bool {
        use tonic::Code::{
            Aborted, Cancelled, DeadlineExceeded, Internal, PermissionDenied, ResourceExhausted,
            Unauthenticated, Unavailable, Unknown,
        };
        match self {
            Self::Unavailable(_) => true,
            Self::Refused { code, .. } => matches!(
                code,
                Unauthenticated
                    | PermissionDenied
                    | ResourceExhausted
                    | Unavailable
                    | DeadlineExceeded
                    | Aborted
                    | Cancelled
                    | Internal
                    | Unknown
            ),
            _ => false,
        }
    }

    /// Whether a file's content cannot be read: the medium or the file system is damaged there, or
    /// this process lacks the permission.
    pub fn is_unreadable(&self) -> bool {
        const DAMAGE: [Errno; 4] = [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::ACCESS];
        self.errno().is_some_and(|errno| DAMAGE.contains(&errno))
    }

    /// Whether something of another type is where a file or a folder should be.
    pub fn is_obstructed(&self) -> bool {
        matches!(self.errno(), Some(Errno::ISDIR | Errno::NOTDIR))
    }

    /// Whether the process or the system has no file descriptor or memory left for the call.
    pub fn is_out_of_resources(&self) -> bool {
        const SHORT: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
        self.errno().is_some_and(|errno| SHORT.contains(&errno))
    }

    /// The cause of an I/O error in words that name no path; nothing for other errors.
    pub fn io_cause(&self) -> Option<String> {
        let Self::Io { source, .. } = self else {
            return None;
        };
        let known = match self.errno() {
            Some(Errno::NOSPC) => "the disk is full",
            Some(Errno::DQUOT) => "the disk quota is used up",
            Some(Errno::FBIG) => "the file is larger than the file system or the process may write",
            Some(Errno::ACCESS | Errno::PERM) => "permission denied",
            Some(Errno::ROFS) => "the file system is mounted read-only",
            Some(Errno::XDEV) => "part of the data directory is on another file system",
            Some(Errno::MFILE) => "the server is out of file descriptors",
            Some(Errno::NFILE) => "the system is out of file descriptors",
            Some(Errno::IO) => "the disk reports an I/O error",
            // The system's own words.
            Some(errno) => return Some(errno.to_string()),
            None => return Some(source.kind().to_string()),
        };
        Some(known.to_owned())
    }

    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }

    /// Whether the disk, a quota or a file-size limit had no room.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge
        ))
    }
}
