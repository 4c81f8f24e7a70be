//! Metrics of the budgets that calls share.

use std::fmt;

use gorego_limits::Budget;

use super::encode::{Encoder, Metric};

const USED: Metric = Metric::bytes(
    "budget_used",
    "Memory that is reserved, by part of limits.memory.",
);
const LIMIT: Metric = Metric::bytes("budget_limit", "The parts of limits.memory.");
const WAITING: Metric = Metric::new(
    "budget_waiting_connections",
    "Connections whose calls wait for memory, by part of limits.memory.",
);
const FILES: Metric = Metric::new(
    "inflight_files",
    "Files that are open for reads of large blobs and for uploads.",
);
const FILES_LIMIT: Metric = Metric::new(
    "inflight_files_limit",
    "The limit of files that are open for reads of large blobs and for uploads.",
);

pub(super) fn memory(mut encoder: Encoder<'_>, budgets: &[(&'static str, Budget)]) -> fmt::Result {
    let each = |read: fn(&Budget) -> u64| {
        let values = budgets.iter();
        values.map(move |(name, budget)| ([("budget", *name)], read(budget)))
    };
    encoder.gauges(USED, each(Budget::used))?;
    encoder.gauges(LIMIT, each(Budget::total))?;
    encoder.gauges(WAITING, each(|budget| budget.waiting() as u64))
}

pub(super) fn files(mut encoder: Encoder<'_>, files: &Budget) -> fmt::Result {
    encoder.gauge(FILES, files.used())?;
    encoder.gauge(FILES_LIMIT, files.total())
}
