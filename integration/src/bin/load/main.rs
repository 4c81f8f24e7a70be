//! A load generator for REAPI caches and executors: requests per second, latency, and the server's CPU time
//! and memory for each request.
//!
//! Servers take turns in each round of each scenario, so that other load on the machine affects all of
//! them.

mod args;
mod attack;
mod client;
mod content;
mod error;
mod execute;
mod process;
mod report;
mod round;
mod scenario;
mod summary;
mod work;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Args, Command},
    error::Error,
    report::Report,
    round::{Limits, Server},
    scenario::Scenario,
    summary::Summary,
};

/// The exit status if a scenario failed or an attack missed its aim.
const EXIT_FAILED: u8 = 1;
/// The exit status if nothing was measured.
const EXIT_START: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Attack(args)) = &args.command {
        return match attack::run(args).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(EXIT_FAILED),
            Err(error) => {
                eprintln!("load: {error}");
                ExitCode::from(EXIT_START)
            }
        };
    }
    let report = match measure(&args).await {
        Ok(report) => report,
        Err(error) => {
            eprintln!("load: {error}");
            return ExitCode::from(EXIT_START);
        }
    };
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.markdown());
    }
    if report.failed() {
        ExitCode::from(EXIT_FAILED)
    } else {
        ExitCode::SUCCESS
    }
}

async fn measure(args: &Args) -> Result<Report, Error> {
    let servers = args.servers.iter().map(Server::new);
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let limits = Limits::from(args);
    let mut report = Report::default();
    for scenario in args.scenarios() {
        let outcomes = compare(scenario, &servers, limits, args.rounds).await;
        report.add(scenario, servers.iter().map(Server::name).zip(outcomes));
    }
    Ok(report)
}

/// Runs the rounds of one scenario, in which the servers take turns. A server's first error ends its part.
async fn compare(
    scenario: Scenario,
    servers: &[Server],
    limits: Limits,
    rounds: u32,
) -> Vec<Result<Summary, Error>> {
    let mut runs = Vec::new();
    for server in servers {
        eprintln!("load: {scenario}: preparing {}", server.name());
        let prepared = server.prepare(scenario).await;
        runs.push((server, prepared.map(|work| (work, Vec::new()))));
    }
    for number in 1..=scenario.shape().rounds(rounds) {
        for (server, run) in &mut runs {
            let Ok((work, done)) = run else { continue };
            eprintln!("load: {scenario}: round {number} of {}", server.name());
            match server.round(scenario, work, limits).await {
                Ok(round) => done.push(round),
                Err(error) => *run = Err(error),
            }
        }
    }
    let runs = runs.into_iter().map(|(_, run)| run);
    runs.map(|run| run.map(|(_, rounds)| Summary::new(rounds, scenario.shape())))
        .collect()
}
