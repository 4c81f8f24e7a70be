//! The failures of executions, and their gRPC statuses.

use gorego_storage::Digest;

/// The reason why an action has no result, or no usable one. The status of each is that of the REAPI, `Execute`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// These blobs are missing: the action, its command, directories or inputs. `FAILED_PRECONDITION` with a violation
    /// `MISSING` for each.
    #[error("{} of the action's blobs are missing; the first is {:?}", .0.len(), .0.first())]
    Missing(Vec<Digest>),
    /// A field of the action, of its command or of a directory is invalid. `INVALID_ARGUMENT`.
    #[error("{field}: {why}")]
    Invalid {
        /// The path of the field.
        field: String,
        /// What is wrong, and what would be accepted.
        why: String,
    },
    /// The action cannot run on this node. `FAILED_PRECONDITION` without violations, so that clients do not repeat it.
    #[error("{0}")]
    Unmet(String),
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
}

impl Failure {
    /// placeholder until merge with front
    pub fn status(&self) -> reapi::rpc::Status {
        let code = match self {
            Self::Missing(_) | Self::Unmet(_) => 9,
            Self::Invalid { .. } => 3,
            Self::QueueFull(_) | Self::NoSpace(_) => 8,
            Self::TimedOut(_) => 4,
            Self::Unavailable(_) => 14,
            Self::Internal(_) => 13,
            Self::Cancelled(_) => 1,
        };
        reapi::rpc::Status {
            code,
            message: self.to_string(),
            ..Default::default()
        }
    }
}
