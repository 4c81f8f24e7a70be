//! The failures of executions, and their gRPC statuses.

use std::{fmt, sync::Arc};

use gorego_storage::{Compressor, Digest, Error, InstanceName, ReadName};
use prost::Message;
use prost_types::{Any, Duration};
use reapi::rpc::{self, Code, PreconditionFailure, RetryInfo, precondition_failure::Violation};
use tracing::error;

/// The most bytes of the violations in a status. gRPC clients take messages of up to 4 MiB.
const MAX_VIOLATIONS: usize = 3 << 20;
/// The time after which a client should repeat a call, in seconds.
const RETRY_DELAY: i64 = 1;

/// The reason why an action has no result, or no usable one. The status of each is that of the REAPI, `Execute`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// These blobs are missing: the action, its command, directories or inputs. `FAILED_PRECONDITION` with a violation
    /// `MISSING` for each.
    #[error("blobs of the action are missing: {}", list(.0))]
    Missing(Vec<Digest>),
    /// A field of the action, of its command or of a directory is invalid. `INVALID_ARGUMENT`.
    #[error("{field}: {why}")]
    Invalid {
        /// The path of the field.
        field: String,
        /// The reason, and what would be accepted.
        why: String,
    },
    /// The action cannot run on this node. `FAILED_PRECONDITION` without violations, so that clients do not repeat it.
    #[error("{0}")]
    Unmet(String),
    /// No node has the platform now. `FAILED_PRECONDITION`, if none with it joins in time.
    #[error("{why}")]
    NoNode {
        /// The text of the platform.
        platform: Arc<str>,
        /// The reason, with the platforms of the nodes.
        why: String,
    },
    /// The queue is full. `RESOURCE_EXHAUSTED` with a delay for a retry.
    #[error("{0}")]
    QueueFull(String),
    /// The command ran longer than its timeout. `DEADLINE_EXCEEDED`, with the partial result.
    #[error("{0}")]
    TimedOut(String),
    /// The disk is full. `RESOURCE_EXHAUSTED` without a delay.
    #[error("{0}")]
    NoSpace(String),
    /// The executor cannot take the action now. `UNAVAILABLE` with a delay for a retry.
    #[error("{0}")]
    Unavailable(String),
    /// The executor failed. `INTERNAL` without a delay: clients repeat it by themselves.
    #[error("{0}")]
    Internal(String),
    /// The client cancelled the operation, or left it. `CANCELLED`.
    #[error("{0}")]
    Cancelled(String),
    /// There is no operation of this name. `NOT_FOUND`.
    #[error("{0}")]
    UnknownOperation(String),
    /// The name of an operation shows it, and gives no right to end it or to wait for it. `PERMISSION_DENIED`.
    #[error("{0}")]
    OnlyShown(String),
    /// The content of a blob does not match its digest. `DATA_LOSS`.
    #[error("{0}")]
    Corrupt(String),
}

impl Failure {
    /// Creates the failure of an invalid field.
    pub(crate) fn invalid(field: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Invalid {
            field: field.to_string(),
            why: why.to_string(),
        }
    }

    /// Creates the failure of an action for an error of a store. Errors of this machine are logged with their path,
    /// which clients do not get.
    pub(crate) fn from_store(cause: Error) -> Self {
        match cause {
            Error::NotFound(digest) => Self::Missing(vec![digest]),
            Error::Unavailable(_) | Error::Outage { .. } => Self::Unavailable(cause.to_string()),
            Error::Full { .. } => Self::NoSpace(cause.to_string()),
            Error::Mismatch { .. } => Self::Corrupt(cause.to_string()),
            Error::Io { action, .. } => {
                error!("{cause}");
                let why = cause.io_cause().unwrap_or_default();
                let message = format!("{action} failed on the server: {why}");
                if cause.is_no_space() {
                    Self::NoSpace(message)
                } else {
                    Self::Internal(message)
                }
            }
            other => Self::Internal(other.to_string()),
        }
    }

    /// Converts the failure for the end of an attempt. Clients retry `INTERNAL` by themselves. `UNAVAILABLE` would make a
    /// client end its whole build, and a retry delay would make it retry more often.
    pub(crate) fn without_retry_advice(self) -> Self {
        match self {
            Self::Unavailable(why) | Self::QueueFull(why) | Self::Corrupt(why) => {
                Self::Internal(why)
            }
            failure => failure,
        }
    }

    /// Returns whether the action may succeed on another node, which has other blobs, another disk or other programs.
    pub(crate) const fn may_be_of_node(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Unmet(_)) || self.is_of_machine()
    }

    /// Returns whether a cause lies in this machine or its connections, and not in the action.
    pub(crate) const fn is_of_machine(&self) -> bool {
        matches!(
            self,
            Self::NoSpace(_) | Self::Unavailable(_) | Self::Internal(_) | Self::Corrupt(_)
        )
    }

    /// Returns the code of the status.
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing(_) | Self::Unmet(_) | Self::NoNode { .. } => Code::FailedPrecondition,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::QueueFull(_) | Self::NoSpace(_) => Code::ResourceExhausted,
            Self::TimedOut(_) => Code::DeadlineExceeded,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
            Self::Cancelled(_) => Code::Cancelled,
            Self::UnknownOperation(_) => Code::NotFound,
            Self::OnlyShown(_) => Code::PermissionDenied,
            Self::Corrupt(_) => Code::DataLoss,
        }
    }

    /// Returns the status with its details: each missing blob as a violation, as far as they fit into a message, or the
    /// time after which to repeat the call.
    pub fn status(&self) -> rpc::Status {
        let detail = match self {
            Self::Missing(digests) => {
                Some(any("google.rpc.PreconditionFailure", &missing(digests)))
            }
            Self::QueueFull(_) | Self::Unavailable(_) => {
                let retry_delay = Some(Duration {
                    seconds: RETRY_DELAY,
                    nanos: 0,
                });
                Some(any("google.rpc.RetryInfo", &RetryInfo { retry_delay }))
            }
            _ => None,
        };
        rpc::Status {
            code: self.code() as i32,
            message: self.to_string(),
            details: detail.into_iter().collect(),
        }
    }
}

/// Names the first of some missing blobs, and the number of the others.
fn list(digests: &[Digest]) -> String {
    match digests {
        [] => String::new(),
        [digest] => digest.to_string(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

/// Packs a message whose full name is `name`.
pub(crate) fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

fn missing(digests: &[Digest]) -> PreconditionFailure {
    let mut bytes = 0;
    let violations = digests.iter().map(|digest| {
        let name = ReadName {
            instance: InstanceName::default(),
            compressor: Compressor::Identity,
            digest: *digest,
        };
        Violation {
            r#type: "MISSING".to_owned(),
            subject: name.to_string(),
            description: String::new(),
        }
    });
    let fitting = violations.take_while(|violation| {
        bytes += violation.encoded_len() + 4;
        bytes <= MAX_VIOLATIONS
    });
    let violations = fitting.collect();
    PreconditionFailure { violations }
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    fn violations(status: &rpc::Status) -> Vec<Violation> {
        let [detail] = status.details.as_slice() else {
            panic!("{} details", status.details.len());
        };
        assert_eq!(
            detail.type_url,
            "type.googleapis.com/google.rpc.PreconditionFailure"
        );
        let failure = PreconditionFailure::decode(detail.value.as_slice());
        failure.unwrap().violations
    }

    #[test]
    fn missing_blobs_are_violations_with_the_function_where_it_cannot_be_inferred() {
        let blobs = [DigestFunction::Sha256, DigestFunction::Blake3].map(|f| f.digest(b"blob"));
        let status = Failure::Missing(blobs.to_vec()).status();
        assert_eq!(status.code, Code::FailedPrecondition as i32);
        let violations = violations(&status);
        assert!(
            violations
                .iter()
                .all(|violation| violation.r#type == "MISSING")
        );
        let subjects: Vec<_> = violations.into_iter().map(|v| v.subject).collect();
        let [sha256, blake3] = blobs.map(|digest| digest.hex());
        assert_eq!(
            subjects,
            [
                format!("blobs/{sha256}/4"),
                format!("blobs/blake3/{blake3}/4")
            ]
        );
    }

    #[test]
    fn a_million_missing_blobs_fit_into_a_message() {
        let blobs = vec![DigestFunction::Sha256.digest(b"blob"); 1_000_000];
        let status = Failure::Missing(blobs).status();
        assert!((3_000_000..4 << 20).contains(&status.encoded_len()));
        assert!(violations(&status).len() > 30_000);
    }

    #[test]
    fn errors_of_stores_have_the_codes_of_the_reapi() {
        let digest = DigestFunction::Sha256.digest(b"blob");
        let io = |kind| Error::io("reading", "/secret/path", std::io::Error::from(kind));
        let down = || Error::Unavailable("down".to_owned());
        for (cause, code) in [
            (Error::NotFound(digest), Code::FailedPrecondition),
            (down(), Code::Unavailable),
            (Error::NotFound(digest).in_outage("down"), Code::Unavailable),
            (Error::mismatch(&digest, "other"), Code::DataLoss),
            (io(std::io::ErrorKind::StorageFull), Code::ResourceExhausted),
            (io(std::io::ErrorKind::PermissionDenied), Code::Internal),
        ] {
            let failure = Failure::from_store(cause);
            assert_eq!(failure.code(), code, "{failure}");
            assert!(!failure.to_string().contains("/secret"), "{failure}");
        }
    }

    #[test]
    fn only_failures_that_pass_have_a_retry_delay() {
        let message = || "why".to_owned();
        for (failure, code, retries) in [
            (Failure::invalid("a", "b"), Code::InvalidArgument, false),
            (Failure::Unmet(message()), Code::FailedPrecondition, false),
            (Failure::QueueFull(message()), Code::ResourceExhausted, true),
            (Failure::NoSpace(message()), Code::ResourceExhausted, false),
            (Failure::TimedOut(message()), Code::DeadlineExceeded, false),
            (Failure::Unavailable(message()), Code::Unavailable, true),
            (Failure::Internal(message()), Code::Internal, false),
            (Failure::Cancelled(message()), Code::Cancelled, false),
            (Failure::UnknownOperation(message()), Code::NotFound, false),
        ] {
            let status = failure.status();
            assert_eq!(status.code, code as i32, "{failure}");
            let retry = status
                .details
                .first()
                .map(|detail| detail.type_url.as_str());
            let expected = retries.then_some("type.googleapis.com/google.rpc.RetryInfo");
            assert_eq!(retry, expected, "{failure}");
        }
    }
}
