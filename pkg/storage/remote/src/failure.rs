//! Why a call came to nothing, and whether to try again.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use reapi::rpc;
use tonic::{Code, Status};

use super::foreign::Page;
use gorego_storage::{Digest, Error, shorten};

/// Why a call came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The peer said so, or the connection failed.
    Status(Status),
    /// Something other than the peer answered. That says nothing of what the peer can do or has.
    Page(Page),
    /// No answer, or no further piece, in this time.
    TimedOut(Duration),
    /// Too many calls were under way for this long.
    Busy(Duration),
    /// The breaker is open, because of this.
    Open(Arc<str>),
    /// The peer answered something that it should not.
    Nonsense(String),
    /// It is no fault of the peer.
    Own(Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Failure {
    /// The failure of one blob in a batch, if its status is one.
    pub(super) fn of_entry(status: rpc::Status) -> Option<Self> {
        let code = Code::from_i32(status.code);
        (code != Code::Ok).then(|| Self::Status(Status::new(code, status.message)))
    }

    /// Whether the connection failed rather than that the peer answered.
    fn is_transport(status: &Status) -> bool {
        status.source().is_some()
    }

    /// Whether the same call may succeed soon.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Status(status) => {
                is_retryable(status.code())
                    || (Self::is_transport(status)
                        && matches!(status.code(), Code::Unknown | Code::Internal))
            }
            Self::Page(page) => is_retryable(page.code()),
            Self::TimedOut(_) => true,
            Self::Busy(_) | Self::Open(_) | Self::Nonsense(_) | Self::Own(_) => false,
        }
    }

    /// Whether a download that had begun may go on: there the hash tells what came of it, and what
    /// stands between here and the peer cuts streams off with these, too.
    pub(super) fn is_resumable(&self) -> bool {
        let code = match self {
            Self::Page(page) => Some(page.code()),
            _ => self.code(),
        };
        self.is_retryable() || matches!(code, Some(Code::Unknown | Code::Internal))
    }

    /// Whether the peer may not know what it was asked in this form, as when it does not do what it
    /// says, or no longer.
    pub(super) fn is_unknown_form(&self) -> bool {
        matches!(
            self.code(),
            Some(Code::InvalidArgument | Code::Unimplemented)
        )
    }

    /// Whether a request may have been refused for its size.
    pub(super) fn is_too_large(&self) -> bool {
        match self {
            // Whoever said it, smaller requests pass.
            Self::Page(page) => page.is_too_large(),
            _ => matches!(
                self.code(),
                Some(Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange)
            ),
        }
    }

    /// Whether the peer, or something before it, asks for fewer calls. It is no sign of a restart.
    pub(super) fn asks_to_slow_down(&self) -> bool {
        match self {
            Self::Status(status) => status.code() == Code::ResourceExhausted,
            Self::Page(page) => page.asks_to_slow_down(),
            _ => false,
        }
    }

    /// Whether it looks as if the peer were not there, or as if it should be left alone.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Status(status) => {
                status.code() == Code::Unavailable
                    || status.code() == Code::DeadlineExceeded
                    || (Self::is_transport(status) && self.is_retryable())
            }
            Self::Page(page) => page.code() == Code::Unavailable,
            Self::TimedOut(_) => true,
            _ => false,
        }
    }

    /// The peer's own answer, if it gave one.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) if !Self::is_transport(status) => Some(status.code()),
            _ => None,
        }
    }

    /// As what the caller is told.
    pub(super) fn into_error(self, peer: &Arc<str>, what: &dyn fmt::Display) -> Error {
        let retryable = self.is_retryable();
        match self {
            Self::Own(error) => error,
            Self::Status(status)
                if !retryable
                    || status.code() == Code::ResourceExhausted && !Self::is_transport(&status) =>
            {
                refused(peer, what, status.code(), &shorten(status.message()))
            }
            Self::Page(page) if !retryable => Error::Refused {
                peer: Arc::clone(peer),
                code: page.code(),
                message: format!("{what}: {page}"),
                foreign: true,
            },
            Self::Nonsense(message) => refused(peer, what, Code::Internal, &shorten(&message)),
            other => Error::Unavailable(format!(
                "backing cache {peer} is unavailable: {what}: {other}"
            )),
        }
    }
}

/// A refusal that names all that matters.
pub(super) fn refused(
    peer: &Arc<str>,
    what: &dyn fmt::Display,
    code: Code,
    message: &str,
) -> Error {
    Error::Refused {
        peer: Arc::clone(peer),
        code,
        message: format!("{what}: {message}"),
        foreign: false,
    }
}

/// Content that is not what its digest says.
pub(super) fn mismatch(expected: &Digest, actual: impl fmt::Display) -> Error {
    Error::Mismatch {
        expected: *expected,
        actual: actual.to_string(),
    }
}

/// Whether the same call may succeed soon after this answer. Nobody here cancels calls and then waits
/// for their answer.
const fn is_retryable(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => {
                f.write_str(&shorten(status.message()))?;
                // Of what lies below, the innermost says most.
                let mut source = status.source();
                while let Some(inner) = source.and_then(|source| source.source()) {
                    source = Some(inner);
                }
                match source {
                    Some(source) => write!(f, ": {source}"),
                    None => write!(f, " ({:?})", status.code()),
                }
            }
            Self::Page(page) => page.fmt(f),
            Self::TimedOut(time) => write!(f, "no answer in {time:?}"),
            Self::Busy(time) => write!(f, "too many calls under way for {time:?}"),
            Self::Open(cause) => write!(f, "not asked, as the last error is recent: {cause}"),
            Self::Nonsense(message) => f.write_str(message),
            Self::Own(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_refuses_is_not_tried_again() {
        for (status, retried) in [
            (Status::unavailable(""), true),
            (Status::resource_exhausted(""), true),
            (Status::deadline_exceeded(""), true),
            (Status::aborted(""), true),
            (Status::cancelled(""), true),
            (Status::internal(""), false),
            (Status::permission_denied(""), false),
            (Status::invalid_argument(""), false),
        ] {
            let failure = Failure::from(status);
            assert_eq!(failure.is_retryable(), retried, "{failure:?}");
        }
    }
}
