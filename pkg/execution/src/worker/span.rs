//! The spans of attempts, for traces. Attempts for a call that is not traced have none.

use gorego_scheduler::{Attempt, Phase, Report};
use gorego_storage::span::TARGET;
use reapi::v2::ExecuteResponse;
use tracing::{Span, field::Empty, info, info_span};

use crate::Job;

/// Creates the span of an attempt; none if the current call is not traced.
pub(super) fn of(attempt: &Attempt<Job>) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let grant = &attempt.grant;
    info_span!(
        target: TARGET,
        "execution",
        otel.name = "execution",
        otel.kind = "internal",
        otel.status_code = Empty,
        digest = %grant.job.key.action,
        attempt = grant.attempt.number(),
        queued_ms = u64::try_from(grant.waited.as_millis()).unwrap_or(u64::MAX),
        exit_code = Empty,
        status = Empty,
    )
}

/// Records a phase of the attempt as an event of the current span.
pub(super) fn begin(phase: Phase) {
    if !Span::current().is_none() {
        info!(target: TARGET, "{}", phase.name());
    }
}

/// Records the end of an attempt.
pub(super) fn end(span: &Span, report: &Report<ExecuteResponse>) {
    let (Report::Done(outcome)
    | Report::OutOfMemory(outcome)
    | Report::Failed(outcome)
    | Report::Unsuited(outcome)) = report
    else {
        return;
    };
    let response = &outcome.value;
    if let Some(result) = &response.result {
        span.record("exit_code", result.exit_code);
    }
    if let Some(status) = &response.status {
        span.record("status", &*status.message);
        span.record("otel.status_code", "ERROR");
    }
}
