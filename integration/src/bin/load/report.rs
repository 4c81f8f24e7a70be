//! The table of results.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    error::Error,
    scenario::{Scenario, Unit},
    summary::{Ratio, Summary},
};

const HEADER: &str = "\
| scenario | server | req/s | MB/s | p50 ms | p99 ms | server CPU | unit | ratio | peak MiB |
|---|---|---:|---:|---:|---:|---:|---|---:|---:|
";

/// All scenarios on all servers.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    scenario: Scenario,
    server: String,
    outcome: Result<Figures, String>,
}

#[derive(Debug)]
struct Figures {
    summary: Summary,
    /// The CPU time relative to the first server, if that succeeded.
    ratio: Option<Ratio>,
}

impl Report {
    /// Adds the results of `scenario` on each server; the first is the reference.
    pub(crate) fn add<'a>(
        &mut self,
        scenario: Scenario,
        outcomes: impl IntoIterator<Item = (&'a str, Result<Summary, Error>)>,
    ) {
        let mut first = None;
        for (server, outcome) in outcomes {
            let costs = outcome.as_ref().map(|summary| summary.costs.clone()).ok();
            let yardstick = first.get_or_insert_with(|| costs.clone());
            let pair = costs.as_ref().zip(yardstick.as_ref());
            let ratio = pair.map(|(costs, first)| Ratio::new(costs, first));
            let figures = |summary| Figures { summary, ratio };
            self.rows.push(Row {
                scenario,
                server: server.to_owned(),
                outcome: outcome.map(figures).map_err(|error| error.to_string()),
            });
        }
    }

    /// Whether any server failed in any scenario.
    pub(crate) fn failed(&self) -> bool {
        self.rows.iter().any(|row| row.outcome.is_err())
    }

    /// Renders a Markdown table, followed by the errors of failed scenarios.
    pub(crate) fn markdown(&self) -> String {
        let mut table = HEADER.to_owned();
        let mut failures = String::new();
        for row in &self.rows {
            let Row {
                scenario, server, ..
            } = row;
            // Writing to a string cannot fail.
            let _ = match &row.outcome {
                Ok(figures) => writeln!(
                    table,
                    "| {scenario} | {server} | {} |",
                    cells(*scenario, figures).join(" | ")
                ),
                Err(error) => {
                    let _ = writeln!(table, "| {scenario} | {server} | failed | | | | | | | |");
                    writeln!(failures, "- {scenario}, {server}: {error}")
                }
            };
        }
        if !failures.is_empty() {
            table.push('\n');
        }
        table + &failures
    }

    /// Renders the figures as JSON, unrounded, with the CPU time of each round.
    pub(crate) fn json(&self) -> Value {
        self.rows.iter().map(Row::json).collect()
    }
}

impl Row {
    fn json(&self) -> Value {
        let mut value = match &self.outcome {
            Ok(Figures { summary, ratio }) => json!({
                "rounds": summary.rounds,
                "calls": summary.calls,
                "requests_per_second": summary.requests_per_second,
                "megabytes_per_second": summary.megabytes_per_second,
                "p50_ms": summary.p50.as_secs_f64() * 1e3,
                "p99_ms": summary.p99.as_secs_f64() * 1e3,
                "cpu": summary.cpu,
                "cpu_rounds": summary.costs,
                "cpu_unit": self.scenario.shape().unit.to_string(),
                "cpu_ratio": ratio.map(|ratio| ratio.median),
                "cpu_ratio_interval": ratio.map(|ratio| [ratio.low, ratio.high]),
                "peak_memory_bytes": summary.peak_memory,
            }),
            Err(error) => json!({ "error": error }),
        };
        if let Some(fields) = value.as_object_mut() {
            fields.insert("scenario".to_owned(), self.scenario.to_string().into());
            fields.insert("server".to_owned(), self.server.clone().into());
        }
        value
    }
}

/// Renders the columns after the names.
fn cells(scenario: Scenario, Figures { summary, ratio }: &Figures) -> [String; 8] {
    let unit = scenario.shape().unit;
    let rate = summary.megabytes_per_second;
    [
        format!("{:.0}", summary.requests_per_second),
        if rate > 0.0 {
            format!("{rate:.0}")
        } else {
            "–".to_owned()
        },
        format!("{:.2}", summary.p50.as_secs_f64() * 1e3),
        format!("{:.2}", summary.p99.as_secs_f64() * 1e3),
        match unit {
            Unit::Request => format!("{:.3}", summary.cpu),
            Unit::Gigabyte => format!("{:.2}", summary.cpu),
        },
        unit.to_string(),
        ratio.map_or_else(
            || "–".to_owned(),
            |Ratio { median, low, high }| format!("{median:.2} ({low:.2}–{high:.2})"),
        ),
        summary.peak_memory.div_ceil(1 << 20).to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::ValueEnum as _;

    use super::*;

    fn scenario(name: &str) -> Scenario {
        Scenario::from_str(name, false).unwrap()
    }

    fn summary(cpu: f64) -> Summary {
        Summary {
            rounds: 3,
            calls: 600,
            requests_per_second: 1234.5,
            megabytes_per_second: 5.0565,
            p50: Duration::from_micros(1500),
            p99: Duration::from_micros(12345),
            cpu,
            costs: vec![cpu * 0.5, cpu, cpu * 2.0],
            peak_memory: 100 << 20,
        }
    }

    #[test]
    fn the_table_compares_cpu_with_the_first_server() {
        let mut report = Report::default();
        let outcomes = [("a", Ok(summary(0.04))), ("b", Ok(summary(0.1)))];
        report.add(scenario("read-4k"), outcomes);
        let expected = format!(
            "{HEADER}\
            | read-4k | a | 1234 | 5 | 1.50 | 12.35 | 0.040 | ms/req | 1.00 (1.00–1.00) | 100 |\n\
            | read-4k | b | 1234 | 5 | 1.50 | 12.35 | 0.100 | ms/req | 2.50 (2.50–2.50) | 100 |\n"
        );
        assert_eq!(report.markdown(), expected);
        assert!(!report.failed());
        let json = report.json();
        assert_eq!(json[1]["scenario"], "read-4k");
        assert_eq!(json[1]["cpu_ratio"], 2.5);
        assert_eq!(json[1]["cpu_unit"], "ms/req");
    }

    #[test]
    fn a_failed_scenario_shows_its_error_and_no_figures() {
        let mut report = Report::default();
        let outcomes = [("a", Err(Error::Idle(7))), ("b", Ok(summary(0.1)))];
        report.add(scenario("find-missing"), outcomes);
        let table = report.markdown();
        assert!(
            table.contains("| find-missing | a | failed | | | | | | | |\n"),
            "{table}"
        );
        assert!(table.contains("| 0.100 | ms/req | – | 100 |\n"), "{table}");
        assert!(
            table.contains("\n\n- find-missing, a: process 7 used no CPU"),
            "{table}"
        );
        assert!(report.failed());
        let json = report.json();
        assert!(json[0]["error"].as_str().unwrap().contains("process 7"));
        assert!(json[0].get("cpu").is_none());
        assert!(json[1]["cpu_ratio"].is_null());
    }
}
