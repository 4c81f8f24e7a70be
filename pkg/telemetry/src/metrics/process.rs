//! Metrics of the process, by the conventions of Prometheus, and of its runtime.

use std::{fmt, fs};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};
use tokio::runtime::Handle;

use super::encode::{Encoder, Metric};

const CPU: Metric = Metric::seconds("cpu", "User and system processor time.");
const RESIDENT: Metric = Metric::bytes("resident_memory", "Resident memory.");
const VIRTUAL: Metric = Metric::bytes("virtual_memory", "Virtual memory.");
const OPEN: Metric = Metric::new("open_fds", "Open file descriptors.");
const MAX: Metric = Metric::new("max_fds", "The limit of open file descriptors.");
const START: Metric = Metric::seconds("start_time", "The start of the process, in Unix time.");

const WORKERS: Metric = Metric::new("tokio_workers", "Threads that run tasks.");
const ALIVE: Metric = Metric::new("tokio_alive_tasks", "Tasks that have not ended.");
const QUEUE: Metric = Metric::new(
    "tokio_global_queue_depth",
    "Tasks that wait in the queue of all threads.",
);
const BUSY: Metric = Metric::seconds(
    "tokio_busy",
    "Time that threads have spent running tasks, of all threads together.",
);

/// The fields of `/proc/self/stat` that are exported, in its units.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    user: u64,
    system: u64,
    start: u64,
    memory: u64,
    pages: u64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        // The name of the process, before the last parenthesis, may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        // Counted from the state, the third field of the file.
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            user: field(14)?,
            system: field(15)?,
            start: field(22)?,
            memory: field(23)?,
            pages: field(24)?,
        })
    }
}

/// Returns the start of the system, in seconds since the Unix epoch.
pub(super) fn boot() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    boot.trim().parse().ok()
}

/// Encodes what the system reports about this process. `boot` is the start of the system.
pub(super) fn process(mut encoder: Encoder<'_>, boot: Option<u64>) -> fmt::Result {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(stat) = stat.as_deref().and_then(Stat::parse) {
        let ticks = clock_ticks_per_second().max(1);
        encoder.counter(CPU, seconds(stat.user + stat.system, ticks))?;
        encoder.gauge(RESIDENT, stat.pages.saturating_mul(page_size() as u64))?;
        encoder.gauge(VIRTUAL, stat.memory)?;
        if let Some(boot) = boot {
            let start = boot.saturating_mul(ticks).saturating_add(stat.start);
            encoder.gauge(START, seconds(start, ticks))?;
        }
    }
    if let Some(open) = open_descriptors() {
        encoder.gauge(OPEN, open)?;
    }
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(Ok(()), |limit| encoder.gauge(MAX, limit))
}

#[expect(clippy::cast_precision_loss, reason = "exact for centuries")]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second as f64
}

/// Counts the open descriptors, which Linux from 6.2 on reports as the size of their folder.
fn open_descriptors() -> Option<u64> {
    let path = "/proc/self/fd";
    match fs::metadata(path).ok()?.len() {
        0 => Some(fs::read_dir(path).ok()?.count() as u64),
        size => Some(size),
    }
}

pub(super) fn runtime(mut encoder: Encoder<'_>, runtime: &Handle) -> fmt::Result {
    let now = runtime.metrics();
    let workers = now.num_workers();
    encoder.gauge(WORKERS, workers as u64)?;
    encoder.gauge(ALIVE, now.num_alive_tasks() as u64)?;
    encoder.gauge(QUEUE, now.global_queue_depth() as u64)?;
    let busy = (0..workers).map(|worker| now.worker_total_busy_duration(worker));
    encoder.counter(BUSY, busy.map(|busy| busy.as_secs_f64()).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_process_may_hold_spaces_and_parentheses() {
        let rest: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a b) 9 (c)) S {}\n", rest.join(" "));
        let expected = Stat {
            user: 14,
            system: 15,
            start: 22,
            memory: 23,
            pages: 24,
        };
        assert_eq!(Stat::parse(&stat), Some(expected));
        for broken in ["", "7 (a", "7 (a) S 4 5", "7 (a) S x"] {
            assert_eq!(Stat::parse(broken), None);
        }
    }
}
