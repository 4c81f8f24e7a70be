//! The summary of the rounds of one scenario.

use std::time::Duration;

use crate::{round::Round, scenario::Shape};

/// The figures of one scenario on one server: rates and CPU of the median round, latencies of all calls,
/// memory of the worst round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) rounds: usize,
    pub(crate) calls: usize,
    pub(crate) requests_per_second: f64,
    /// 10^6 bytes of content per second; 0 without content.
    pub(crate) megabytes_per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// The server's CPU time in the scenario's unit.
    pub(crate) cpu: f64,
    /// The CPU time of each round, in the order of the rounds.
    pub(crate) costs: Vec<f64>,
    /// The peak resident memory, in bytes.
    pub(crate) peak_memory: u64,
}

impl Summary {
    /// Summarizes `rounds`, of which there is at least one, with at least one call.
    pub(crate) fn new(mut rounds: Vec<Round>, shape: Shape) -> Self {
        let mut rates = Vec::new();
        let mut costs = Vec::new();
        let mut latencies = Vec::new();
        for round in &mut rounds {
            let calls = u32::try_from(round.latencies.len()).unwrap_or(u32::MAX);
            rates.push(f64::from(calls) / round.elapsed.as_secs_f64());
            costs.push(shape.cpu(round.cpu, calls));
            latencies.append(&mut round.latencies);
        }
        latencies.sort_unstable();
        let requests_per_second = median(&mut rates);
        let peaks = rounds.iter().map(|round| round.peak_memory);
        Self {
            rounds: rounds.len(),
            calls: latencies.len(),
            requests_per_second,
            megabytes_per_second: requests_per_second * shape.megabytes(),
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
            cpu: median(&mut costs.clone()),
            costs,
            peak_memory: peaks.max().unwrap_or_default(),
        }
    }
}

/// CPU time as a multiple of another server's: the median over the rounds, and the interval that holds the true median
/// with a confidence of 95 %. With fewer than six rounds: the whole range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// Compares each round with the round of the other server beside it.
    pub(crate) fn new(costs: &[f64], others: &[f64]) -> Self {
        let mut ratios: Vec<_> = costs.iter().zip(others).map(|(a, b)| a / b).collect();
        let median = median(&mut ratios);
        let cut = cut(ratios.len());
        let at = |rank: usize| ratios.get(rank).copied().unwrap_or(f64::NAN);
        Self {
            median,
            low: at(cut),
            high: at(ratios.len().saturating_sub(1 + cut)),
        }
    }
}

/// Returns how many of `count` sorted values lie outside the 95 % interval of their median, at each end. The number of
/// values below the true median is binomial with one half.
fn cut(count: usize) -> usize {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let mut ways = 0.5_f64.powi(count);
    let mut below = ways;
    let outside = (1..count).take_while(|&rank| {
        ways *= f64::from(count + 1 - rank) / f64::from(rank);
        below += ways;
        below <= 0.025
    });
    outside.count()
}

/// Returns the least of the sorted `values` that `percent` in a hundred do not exceed.
pub(crate) fn percentile(values: &[Duration], percent: usize) -> Duration {
    let rank = (values.len() * percent).div_ceil(100);
    let found = values.get(rank.saturating_sub(1));
    found.copied().unwrap_or_default()
}

/// Sorts `values` and returns the median, which is the mean of the middle two if their number is even.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    let lower = values.len().saturating_sub(1) / 2;
    match (values.get(lower), values.get(upper)) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::scenario::Scenario;

    fn millis(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_percentile_is_a_measured_latency() {
        let ms = Duration::from_millis;
        let hundred = millis(1..=100);
        assert_eq!(percentile(&hundred, 50), ms(50));
        assert_eq!(percentile(&hundred, 99), ms(99));
        let four = millis([1, 2, 3, 4]);
        assert_eq!(percentile(&four, 50), ms(2));
        assert_eq!(percentile(&four, 99), ms(4));
        assert_eq!(percentile(&millis([7]), 50), ms(7));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn a_median_ignores_order_and_outliers() {
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found}");
        close(median(&mut [9.0, 1.0, 2.0]), 2.0);
        close(median(&mut [4.0, 1.0, 3.0, 900.0]), 3.5);
        close(median(&mut [5.0]), 5.0);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn a_ratio_compares_rounds_side_by_side_and_has_the_interval_of_the_median() {
        let found = Ratio::new(&[2.0, 30.0, 8.0], &[1.0, 10.0, 8.0]);
        let expected = Ratio {
            median: 2.0,
            low: 1.0,
            high: 3.0,
        };
        assert_eq!(found, expected);
        // The table of the sign test for two sides and 5 %.
        let cuts = [5, 6, 8, 9, 11, 12, 14, 15, 16, 17, 20, 25].map(cut);
        assert_eq!(cuts, [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 7]);
    }

    #[test]
    fn a_summary_has_the_median_rate_and_cpu_all_latencies_and_the_worst_memory() {
        let round = |cpu: u64, peak_memory: u64, latencies: &[u64]| Round {
            elapsed: Duration::from_secs(2),
            cpu: Duration::from_millis(cpu),
            peak_memory,
            latencies: millis(latencies.iter().copied()),
        };
        let rounds = vec![
            round(8, 10, &[30, 10]),
            round(2, 30, &[20, 40]),
            round(900, 20, &[60, 50, 80, 70]),
        ];
        let shape = Scenario::from_str("read-4k", false).unwrap().shape();
        let found = Summary::new(rounds, shape);
        let expected = Summary {
            rounds: 3,
            calls: 8,
            requests_per_second: 1.0,
            megabytes_per_second: 0.004_096,
            p50: Duration::from_millis(40),
            p99: Duration::from_millis(80),
            cpu: 4.0,
            costs: vec![4.0, 1.0, 225.0],
            peak_memory: 30,
        };
        assert_eq!(found, expected);
    }
}
