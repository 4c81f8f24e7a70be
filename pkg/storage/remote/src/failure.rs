//! Failures of calls: their classes, and their errors.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use reapi::rpc;
use tonic::{Code, Status};

use super::peer::Peer;
use gorego_storage::{Error, shorten};

#[derive(Clone, Debug)]
pub(super) enum Failure {
    Answer(Status),
    Transport(Status),
    /// The answer of a proxy in front of the peer. It reveals nothing about the peer.
    Page(Status),
    /// No answer, or no further piece, in this time.
    TimedOut(Duration),
    /// The call was not made, for this reason.
    NotMade(String),
    /// An error that is no fault of the peer.
    Own(Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if status.source().is_some() {
            Self::Transport(status)
        } else {
            Self::Answer(status)
        }
    }
}

impl Failure {
    /// Returns the failure of one blob in a batch, if its status is one.
    pub(super) fn of_entry(status: rpc::Status) -> Option<Self> {
        let code = Code::from_i32(status.code);
        (code != Code::Ok).then(|| Self::Answer(Status::new(code, status.message)))
    }

    /// Returns the code of the peer's own answer, if it gave one.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Answer(status) => Some(status.code()),
            _ => None,
        }
    }

    const fn status(&self) -> Option<&Status> {
        match self {
            Self::Answer(status) | Self::Transport(status) | Self::Page(status) => Some(status),
            _ => None,
        }
    }

    fn is_any_of(&self, codes: &[Code]) -> bool {
        self.status()
            .is_some_and(|status| codes.contains(&status.code()))
    }

    /// Whether the same call may succeed soon. gorego cancels no call whose answer it waits for.
    pub(super) fn is_retryable(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
        let is_cut_off =
            matches!(self, Self::Transport(_)) && self.is_any_of(&[Code::Unknown, Code::Internal]);
        is_cut_off
            || matches!(self, Self::TimedOut(_))
            || self.is_any_of(&[
                Unavailable,
                DeadlineExceeded,
                ResourceExhausted,
                Aborted,
                Cancelled,
            ])
    }

    /// Whether a download that made progress may be resumed. Proxies cut streams off with these codes, and
    /// the hash is verified in the end.
    pub(super) fn is_resumable(&self) -> bool {
        self.is_retryable() || self.is_any_of(&[Code::Unknown, Code::Internal])
    }

    /// Whether the peer may not support the form of the request, although it announced it.
    pub(super) fn is_unknown_form(&self) -> bool {
        use Code::{InvalidArgument, Unimplemented};
        matches!(self.code(), Some(InvalidArgument | Unimplemented))
    }

    /// Whether a request may have been refused for its size.
    pub(super) fn is_too_large(&self) -> bool {
        use Code::{InvalidArgument, OutOfRange, ResourceExhausted};
        match self {
            Self::Page(page) => page.code() == OutOfRange,
            _ => matches!(
                self.code(),
                Some(InvalidArgument | ResourceExhausted | OutOfRange)
            ),
        }
    }

    /// Whether the peer, or a proxy in front of it, asks for fewer calls, which is no sign of a restart.
    pub(super) fn asks_to_slow_down(&self) -> bool {
        self.is_any_of(&[Code::ResourceExhausted])
    }

    /// Whether the peer seems to be out of reach, or should be left alone.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Answer(_) => self.is_any_of(&[Code::Unavailable, Code::DeadlineExceeded]),
            _ => self.is_retryable(),
        }
    }
}

impl Peer {
    /// Returns the error of an operation that ended with this failure.
    pub(super) fn error(&self, operation: &dyn fmt::Display, failure: Failure) -> Error {
        let is_exhausted = failure.code() == Some(Code::ResourceExhausted);
        let is_temporary = failure.is_retryable() && !is_exhausted;
        if let Failure::Own(error) = failure {
            return error;
        }
        let peer = Arc::clone(&self.name);
        match failure.status() {
            Some(status) if !is_temporary => {
                let foreign = matches!(failure, Failure::Page(_));
                let (whole, short) = (status.message(), shorten(status.message()));
                let message = if foreign { whole } else { &short };
                Error::Refused {
                    peer,
                    code: status.code(),
                    message: format!("{operation}: {message}"),
                    foreign,
                }
            }
            _ => Error::Unavailable(format!(
                "{} {peer} is unavailable: {operation}: {failure}",
                self.options.role
            )),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(status) => {
                write!(f, "{} ({:?})", shorten(status.message()), status.code())
            }
            Self::Transport(status) => {
                // The innermost cause says most.
                let mut cause = status.source();
                while let Some(inner) = cause.and_then(|cause| cause.source()) {
                    cause = Some(inner);
                }
                let cause = cause.map(ToString::to_string).unwrap_or_default();
                write!(f, "{}: {cause}", shorten(status.message()))
            }
            Self::Page(page) => f.write_str(page.message()),
            Self::TimedOut(time) => write!(f, "no answer in {time:?}"),
            Self::NotMade(why) => f.write_str(why),
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
