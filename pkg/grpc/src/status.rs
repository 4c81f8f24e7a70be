//! Statuses that calls of any service end with.

use std::{fmt, time::Duration};

use gorego_limits::{Full, MIN_PACE};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::error;

/// The time after which a client should retry a call that was unavailable.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Returns `UNAVAILABLE` with the time after which to retry (`google.rpc.RetryInfo`).
pub fn unavailable(message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// Returns the status of a call that waited too long for memory.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn full(why: Full) -> Status {
    unavailable(why.to_string())
}

/// Returns the status of a call with a message that cannot be decoded.
pub fn malformed(why: impl fmt::Display) -> Status {
    Status::invalid_argument(format!("malformed message: {why}"))
}

/// Returns the status of a call whose connection fell below the minimum rate.
pub(crate) fn too_slow() -> Status {
    Status::resource_exhausted(format!(
        "too slow while others waited: less than {MIN_PACE} bytes a second"
    ))
}

/// Returns the status of a call that took longer than its client allows.
pub(crate) fn too_late() -> Status {
    Status::deadline_exceeded("the deadline of this call (grpc-timeout) has passed")
}

/// Returns the status of a call whose handler panicked, and logs it after the panic itself.
pub(crate) fn panicked() -> Status {
    error!("a handler panicked; its call fails with INTERNAL");
    Status::internal("the server failed; its log has the cause")
}
