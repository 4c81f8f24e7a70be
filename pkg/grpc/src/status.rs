//! Statuses that calls end with, whatever their service.

use std::time::Duration;

use gorego_limits::{Full, SLOWEST};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How long a client should wait before it retries a call that was unavailable.
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

/// Returns the status of a call that is ended by its pace.
pub(crate) fn too_slow() -> Status {
    Status::resource_exhausted(format!(
        "too slow while others waited: fewer than {SLOWEST} bytes a second went to or fro"
    ))
}
