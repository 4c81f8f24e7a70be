//! Conversion of the errors of stores to gRPC statuses.

use std::fmt;

use gorego_execution::Failure;
use gorego_grpc::unavailable;
use gorego_storage::{Error, TreeError};
use prost::Message as _;
use reapi::rpc;
use tonic::{Code, Status};
use tracing::error;

/// Returns the status for a store's error. Failures of this machine are logged with their path, which clients do not
/// get.
pub(crate) fn from_store(cause: Error) -> Status {
    let message = cause.to_string();
    match cause {
        Error::NotFound(_)
        | Error::NoResult(_)
        | Error::Incomplete { .. }
        | Error::Outage { .. } => Status::not_found(message),
        Error::Mismatch { .. } => Status::invalid_argument(message),
        Error::OffsetPastEnd { .. } => Status::out_of_range(message),
        Error::ResumedMismatch { .. } | Error::UploadOffset { .. } | Error::Superseded(_) => {
            Status::aborted(message)
        }
        Error::Full { .. } => Status::resource_exhausted(message),
        Error::Unavailable(_) => unavailable(message),
        // Not the answer of a gRPC server, and clients would remember it.
        Error::Refused {
            code: Code::Unimplemented,
            foreign: true,
            ..
        } => Status::internal(message),
        Error::Refused { code, .. } => Status::new(refused(code), message),
        Error::Source(source) => source
            .downcast_ref::<Status>()
            .cloned()
            .unwrap_or_else(|| Status::aborted(message)),
        Error::Io { action, .. } => {
            error!("{message}");
            from_io(action, &cause)
        }
    }
}

/// Returns the status for an I/O error: its cause without the path.
fn from_io(action: &str, error: &Error) -> Status {
    let cause = error.io_cause().unwrap_or_default();
    let message = format!("{action} a file of the cache failed: {cause}");
    if error.is_no_space() {
        Status::resource_exhausted(message)
    } else if error.is_out_of_resources() {
        unavailable(message)
    } else {
        Status::internal(message)
    }
}

/// Returns the status for a store's error in a read. Corrupt content came from a backing cache there, not from the
/// client.
pub(crate) fn from_read(cause: Error) -> Status {
    match cause {
        Error::Mismatch { .. } => Status::data_loss(cause.to_string()),
        other => from_store(other),
    }
}

/// Returns the code for a refusal of the backing cache. Refusals that a client can act on keep their code.
const fn refused(code: Code) -> Code {
    match code {
        Code::PermissionDenied
        | Code::Unauthenticated
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::DataLoss
        | Code::Unimplemented => code,
        // The limit on messages of the backing cache, or of a proxy in front of it.
        Code::OutOfRange => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// Returns the status for a tree that cannot be read.
pub(crate) fn from_tree(cause: TreeError) -> Status {
    match cause {
        TreeError::Store(cause) => from_read(cause),
        bad => Status::invalid_argument(bad.to_string()),
    }
}

/// Returns the status for an action that was not accepted.
pub(crate) fn from_failure(failure: &Failure) -> Status {
    let status = failure.status();
    // A status without details is told by the other trailers.
    let details = match status.details.as_slice() {
        [] => Vec::new(),
        _ => status.encode_to_vec(),
    };
    Status::with_details(Code::from(status.code), status.message, details.into())
}

/// Returns `INVALID_ARGUMENT` for the field of a request at this path.
pub(crate) fn invalid_field(field: impl fmt::Display, why: impl fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

/// Returns the status message of one blob of a batch, with the details of the status.
pub(crate) fn outcome<T>(result: &Result<T, Status>) -> rpc::Status {
    let Err(status) = result else {
        return rpc::Status::default();
    };
    // The details of a call's status are encoded in the same message.
    let encoded = rpc::Status::decode(status.details()).unwrap_or_default();
    rpc::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: encoded.details,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use gorego_storage::DigestFunction;

    use super::*;

    #[test]
    fn each_store_error_has_the_code_of_the_reapi() {
        let digest = DigestFunction::Sha256.digest(b"content");
        let actual = String::new;
        let io = |kind| Error::io("reading", "/secret/path", io::Error::from(kind));
        let refusal = |code| Error::Refused {
            peer: "cache:1".into(),
            code,
            message: "no".to_owned(),
            foreign: false,
        };
        let cases = [
            (Error::NotFound(digest), Code::NotFound),
            (Error::NotFound(digest).in_outage("down"), Code::NotFound),
            (Error::mismatch(&digest, actual()), Code::InvalidArgument),
            (
                Error::ResumedMismatch {
                    expected: digest,
                    actual: actual(),
                },
                Code::Aborted,
            ),
            (Error::OffsetPastEnd { digest, offset: 9 }, Code::OutOfRange),
            (
                Error::UploadOffset {
                    digest,
                    offset: 9,
                    committed: 1,
                },
                Code::Aborted,
            ),
            (Error::Superseded(digest), Code::Aborted),
            (
                Error::Full {
                    what: digest.to_string(),
                    bytes: 1,
                    why: actual(),
                },
                Code::ResourceExhausted,
            ),
            (Error::Unavailable(actual()), Code::Unavailable),
            (
                Error::source(Status::deadline_exceeded("idle")),
                Code::DeadlineExceeded,
            ),
            (refusal(Code::PermissionDenied), Code::PermissionDenied),
            (refusal(Code::Unauthenticated), Code::Unauthenticated),
            (refusal(Code::ResourceExhausted), Code::ResourceExhausted),
            (refusal(Code::OutOfRange), Code::ResourceExhausted),
            (io(io::ErrorKind::StorageFull), Code::ResourceExhausted),
            (io(io::ErrorKind::PermissionDenied), Code::Internal),
        ];
        for (cause, code) in cases {
            let status = from_store(cause.clone());
            assert_eq!(status.code(), code, "{cause}");
            assert!(!status.message().contains("/secret"), "{status}");
        }
    }

    #[test]
    fn corrupt_content_is_invalid_in_a_write_and_data_loss_in_a_read() {
        let digest = DigestFunction::Sha256.digest(b"content");
        let mismatch = Error::Mismatch {
            expected: digest,
            actual: "other content, from cache:1".to_owned(),
        };
        let status = from_read(mismatch.clone());
        assert_eq!(status.code(), Code::DataLoss);
        assert!(status.message().contains(&digest.hex()), "{status}");
        let tree = from_tree(TreeError::Store(mismatch.clone()));
        assert_eq!(tree.code(), Code::DataLoss);
        assert_eq!(from_store(mismatch).code(), Code::InvalidArgument);
        assert_eq!(
            from_read(Error::NotFound(digest)).code(),
            from_store(Error::NotFound(digest)).code()
        );
    }

    #[test]
    fn unavailable_errors_have_a_retry_delay() {
        let status = from_store(Error::Unavailable("backing cache is down".to_owned()));
        let details = rpc::Status::decode(status.details()).unwrap();
        let [any] = details.details.as_slice() else {
            panic!("one detail, not {}", details.details.len());
        };
        let retry = rpc::RetryInfo::decode(any.value.as_slice()).unwrap();
        assert_eq!(retry.retry_delay.unwrap().seconds, 1);
    }
}
