//! The numbers of an executor, for its metrics.

use std::sync::atomic::Ordering::Relaxed;

use gorego_execution::{Executor, NodeWorker};
use gorego_telemetry::ExecutionReport;

/// Reads the numbers of the executor, and of its worker, if it has one.
pub(super) fn report(executor: &Executor, worker: Option<&NodeWorker>) -> ExecutionReport {
    let (totals, admissions) = (executor.totals(), executor.admissions());
    ExecutionReport {
        queued: totals.queued as u64,
        running: totals.running as u64,
        retries: totals.ends.retries,
        cached: admissions.cached.load(Relaxed),
        refused: admissions.refused.load(Relaxed),
        errors: admissions.errors.load(Relaxed) + totals.ends.failed,
        cancelled: totals.ends.cancelled,
        ..worker.map(report_of).unwrap_or_default()
    }
}

fn report_of(worker: &NodeWorker) -> ExecutionReport {
    let (inputs, verifications) = (worker.inputs(), worker.verifications());
    let persistent = worker.persistent();
    ExecutionReport {
        staged: inputs.staged.load(Relaxed),
        staged_bytes: inputs.staged_bytes.load(Relaxed),
        altered: inputs.altered.load(Relaxed),
        verified: verifications.verified.load(Relaxed),
        not_reproducible: verifications.not_reproducible.load(Relaxed),
        workers: persistent.workers,
        answered: persistent.answered,
        unanswered: persistent.failed,
        ..ExecutionReport::default()
    }
}
