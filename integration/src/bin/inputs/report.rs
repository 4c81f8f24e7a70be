//! The total time of a run, and the times in which inputs were fetched.

use std::{fmt, time::Duration};

use prost_types::Timestamp;
use reapi::v2::ExecutedActionMetadata;

use crate::Args;

#[derive(Debug)]
pub(crate) struct Report {
    args: Args,
    total: Duration,
    /// The times in which the inputs of actions were fetched, in milliseconds, sorted: at the node that the client
    /// called, and at the others.
    fetches: [Vec<f64>; 2],
}

impl Report {
    pub(crate) fn new(args: &Args, total: Duration, ended: &[ExecutedActionMetadata]) -> Self {
        let mut fetches = [Vec::new(), Vec::new()];
        let [own, others] = &mut fetches;
        for metadata in ended {
            let start = metadata.input_fetch_start_timestamp.as_ref();
            let end = metadata.input_fetch_completed_timestamp.as_ref();
            let (start, end) = start.zip(end).expect("an action that was run");
            let list = if metadata.worker == "a" {
                &mut *own
            } else {
                &mut *others
            };
            list.push(ms(end) - ms(start));
        }
        for fetches in &mut fetches {
            fetches.sort_unstable_by(f64::total_cmp);
        }
        let args = args.clone();
        Self {
            args,
            total,
            fetches,
        }
    }
}

fn ms(time: &Timestamp) -> f64 {
    // Differences of less than a day are precise to a microsecond.
    let second = u32::try_from(time.seconds % 86_400).unwrap_or(0);
    f64::from(second) * 1e3 + f64::from(time.nanos) / 1e6
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Args {
            actions,
            files,
            bytes,
            seconds,
            slots,
            place,
            ..
        } = &self.args;
        let rounds = f64::from(*actions) / f64::from(3 * slots);
        let ideal = rounds.ceil() * seconds;
        let total = self.total.as_secs_f64();
        writeln!(
            f,
            "{actions} actions of {seconds} s with {files} files of {bytes} bytes at {place:?}, 3 nodes x {slots} slots"
        )?;
        write!(
            f,
            "time {total:.2} s, ideal {ideal:.2} s, ratio {:.3}",
            total / ideal
        )?;
        for (name, fetches) in ["entry node", "other nodes"].iter().zip(&self.fetches) {
            let at = |part: usize| {
                fetches
                    .get(fetches.len() * part / 100)
                    .copied()
                    .unwrap_or(0.0)
            };
            let mean = fetches.iter().sum::<f64>()
                / f64::from(u32::try_from(fetches.len()).unwrap_or(1).max(1));
            write!(
                f,
                "\ninputs fetched at the {name}: {} times, ms mean {mean:.1}, p50 {:.1}, p90 {:.1}",
                fetches.len(),
                at(50),
                at(90)
            )?;
        }
        Ok(())
    }
}
