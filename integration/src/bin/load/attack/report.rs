//! The table of attacks.

use std::{fmt, time::Duration};

use super::{honest::Calls, kind::Attack};
use crate::summary::percentile;

pub(super) const HEADER: &str = "\
| attack | peak MiB | aim | after MiB | CPU s | honest calls | errors | p99 alone ms | p99 beside ms | newcomer ms |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
";

/// The latency of the honest client that is always acceptable.
const SLOW: Duration = Duration::from_secs(2);
/// The acceptable factor by which the attack slows the honest client.
const SLOWER: u32 = 3;

/// The measurements of an attack.
pub(super) struct Row {
    pub(super) attack: Attack,
    /// Peak resident memory, in bytes.
    pub(super) peak: u64,
    /// Resident memory twelve seconds after the attack, in bytes.
    pub(super) after: u64,
    /// The server's CPU time for the attack and the honest client.
    pub(super) cpu: Duration,
    /// Honest calls before the attack.
    pub(super) alone: Calls,
    /// Honest calls during the attack.
    pub(super) beside: Calls,
    /// The time that a client needs to connect and make a call during the attack.
    pub(super) newcomer: Result<Duration, String>,
}

impl Row {
    /// Whether the server's memory and the honest client's latency met the aims.
    pub(super) fn is_met(&self) -> bool {
        let slowest = (p99(&self.alone) * SLOWER).max(SLOW);
        self.peak.div_ceil(1 << 20) <= self.attack.aim_mib()
            && self.beside.errors.is_empty()
            && self.newcomer.is_ok()
            && p99(&self.beside) <= slowest
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newcomer = match &self.newcomer {
            Ok(time) => millis(*time),
            Err(error) => error.clone(),
        };
        write!(
            f,
            "| {}{} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {newcomer} |",
            self.attack,
            if self.is_met() { "" } else { " (missed)" },
            self.peak.div_ceil(1 << 20),
            self.attack.aim_mib(),
            self.after.div_ceil(1 << 20),
            self.cpu.as_secs_f64(),
            self.beside.latencies.len(),
            self.beside.errors.len(),
            millis(p99(&self.alone)),
            millis(p99(&self.beside)),
        )?;
        match self.beside.errors.first() {
            Some(first) => write!(f, "\n  first error: {first}"),
            None => Ok(()),
        }
    }
}

fn p99(calls: &Calls) -> Duration {
    percentile(&calls.latencies, 99)
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}
