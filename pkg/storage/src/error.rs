//! The error of stores.

use std::{fmt, io, path::PathBuf, sync::Arc};

use gorego_limits::Full;
use rustix::io::Errno;

use crate::Digest;

/// The result of a store's method.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a store. `Clone`, since several waiters may share one cause.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The blob is missing.
    #[error("blob {0} not found")]
    NotFound(Digest),
    /// The action has no result.
    #[error("no result of action {0}")]
    NoResult(Digest),
    /// The action's result names a missing blob, or is malformed.
    #[error("result of action {action} is incomplete: {why}")]
    Incomplete {
        /// The action.
        action: Digest,
        /// The missing blob, or the malformed part.
        why: String,
        /// The missing blob; `None` if a part is malformed.
        missing: Option<Box<Digest>>,
    },
    /// The local tier lacks a blob or a complete result. The backing cache, which may have it, did not answer.
    #[error("{miss} in the local tier, and the backing cache did not answer: {why}")]
    Outage {
        /// The miss of the local tier.
        miss: Box<Error>,
        /// The error of the backing cache.
        why: String,
    },
    /// The content's size or hash differs from its digest. Nothing was stored.
    #[error("content does not match digest {expected}: it is {actual}")]
    Mismatch {
        /// The blob's digest.
        expected: Digest,
        /// The content's digest, or the size from which on it was not hashed.
        actual: String,
    },
    /// The hash of a resumed upload differs from its digest. The upload was dropped and has to be restarted.
    #[error("resumed upload does not match digest {expected}: it is {actual}; upload it anew")]
    ResumedMismatch {
        /// The blob's digest.
        expected: Digest,
        /// The digest of the stored and the new bytes together.
        actual: String,
    },
    /// The offset is beyond the blob's end.
    #[error("offset {offset} is past the end of blob {digest}")]
    OffsetPastEnd {
        /// The blob.
        digest: Digest,
        /// The requested offset.
        offset: u64,
    },
    /// The upload resumes beyond the bytes stored of it.
    #[error("upload of {digest} cannot resume at {offset}: {committed} bytes are stored")]
    UploadOffset {
        /// The blob.
        digest: Digest,
        /// The requested offset, in bytes.
        offset: u64,
        /// The bytes stored of the upload.
        committed: u64,
    },
    /// A newer call resumed the same upload.
    #[error("upload of {0} was superseded by a newer call")]
    Superseded(Digest),
    /// There is no room, even after eviction.
    #[error("no room for {bytes} bytes of {what}: {why}")]
    Full {
        /// A digest or a path.
        what: String,
        /// The requested room.
        bytes: u64,
        /// The limit that is exceeded.
        why: String,
    },
    /// The store is unreachable, overloaded or shutting down. The same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The backing cache rejected the call, or its response is invalid. The same call would fail again.
    #[error("backing cache {peer}: {message} ({code:?})")]
    Refused {
        /// The address of the backing cache.
        peer: Arc<str>,
        /// The code of the response.
        code: tonic::Code,
        /// The call, and the message of the response.
        message: String,
        /// Set if the response is an HTTP page of a proxy in front of the peer. Such an error is temporary.
        foreign: bool,
    },
    /// The caller's content cannot be read.
    #[error("reading the content: {0}")]
    Source(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// An operation on a file failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The operation, as a participle.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// Creates the error of a call whose memory did not become free in time.
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    pub fn no_memory(why: Full) -> Self {
        Self::Unavailable(why.to_string())
    }

    /// Creates the error of an operation on the file at `path`. `action` is a participle.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: Arc::new(source),
        }
    }

    /// Creates the error of content that does not match its digest. `actual` is the content's digest or size.
    pub fn mismatch(expected: &Digest, actual: impl fmt::Display) -> Self {
        Self::Mismatch {
            expected: *expected,
            actual: actual.to_string(),
        }
    }

    /// Turns the mismatch of an upload that was `resumed` into one that says so. Returns other errors unchanged.
    #[must_use]
    pub fn if_resumed(self, resumed: bool) -> Self {
        match self {
            Self::Mismatch { expected, actual } if resumed => {
                Self::ResumedMismatch { expected, actual }
            }
            other => other,
        }
    }

    /// Turns a miss of the local tier into that of an outage with the backing cache's error `why`. Returns other errors
    /// unchanged.
    #[must_use]
    pub fn in_outage(self, why: impl fmt::Display) -> Self {
        match self {
            Self::NotFound(_) | Self::NoResult(_) | Self::Incomplete { .. } => Self::Outage {
                miss: Box::new(self),
                why: why.to_string(),
            },
            other => other,
        }
    }

    /// Returns whether the blob is missing, or the action has no complete result.
    pub const fn is_miss(&self) -> bool {
        matches!(
            self,
            Self::NotFound(_) | Self::NoResult(_) | Self::Incomplete { .. } | Self::Outage { .. }
        )
    }

    /// Returns whether a lookup found nothing under the tried digest function: a miss, or a backing cache without that
    /// function.
    pub fn is_absence(&self) -> bool {
        self.is_miss()
            || matches!(self, Self::Refused { code, .. } if *code == tonic::Code::InvalidArgument)
    }

    /// Wraps an error of the caller's stream.
    pub fn source(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Source(Arc::new(error))
    }

    /// Whether the cause may be the state of the store or of a proxy in front of it, and not the request: the
    /// same call may succeed later.
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

    /// Whether the error concerns the store as a whole, or this client's permissions, and not the request.
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

    /// Whether a file cannot be read: the medium or the file system is damaged, or the permission is missing.
    pub fn is_unreadable(&self) -> bool {
        const DAMAGE: [Errno; 4] = [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::ACCESS];
        self.errno().is_some_and(|errno| DAMAGE.contains(&errno))
    }

    /// Whether there is a folder in the place of a file, or a file in the place of a folder.
    pub fn is_obstructed(&self) -> bool {
        matches!(self.errno(), Some(Errno::ISDIR | Errno::NOTDIR))
    }

    /// Whether the process or the system is out of file descriptors or memory.
    pub fn is_out_of_resources(&self) -> bool {
        const SHORT: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
        self.errno().is_some_and(|errno| SHORT.contains(&errno))
    }

    /// Describes the cause of an I/O error without the path; `None` for other errors.
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

    /// Whether the disk is full, or a quota or a limit of the file size is exceeded.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge
        ))
    }
}
