//! gorego: a build cache that speaks the Remote Execution API.

mod actions;
mod backing;
mod banner;
mod builds;
mod cli;
mod cluster;
mod descriptors;
mod drain;
mod execution;
mod listen;
mod memory;
mod mesh;
mod meters;
mod metrics;
mod reload;
mod remote;
mod shell;
mod signals;
mod site;
mod terminal;
mod tiers;
mod traces;
mod wire;

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use gorego_config::{Config, LoadedConfig, LogLevel, Sources};
use gorego_telemetry::logs;
use tracing::Level;

use crate::cli::{Cli, Cluster, Command};

/// Measured with `load` and `load attack`. The allocator of glibc takes 1.36 times the processor time
/// for the calls of a Bazel action and 1.2 times for uploads of 64 MiB. mimalloc holds 695 MiB where
/// jemalloc holds 185 (2,000 stalled reads on 10 connections). With its background threads, jemalloc
/// returns unused memory to the system within some ten seconds: 29 MiB instead of 314 are left after
/// 10,000 connections.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit status of a failed start: the configuration, the address or the data directory is unusable. Also the status
/// of commands with unusable options.
const EXIT_START: u8 = 2;

/// The exit status of a command that found no running gorego.
const EXIT_NO_SERVER: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let load = || load(&cli);
    let (ended, failure) = match &cli.command {
        Some(Command::Config) => (load().map(|loaded| configuration(&loaded)), EXIT_START),
        Some(Command::Serve) | None => (load().and_then(|loaded| serve(&loaded)), EXIT_START),
        Some(Command::Stats(options)) => (terminal::stats(options, &load), EXIT_NO_SERVER),
        Some(Command::Explain(options)) => (terminal::explain(options, &load), EXIT_NO_SERVER),
        Some(Command::Shell(options)) => return shell::run(options, &load),
        Some(Command::Peers(options)) => (terminal::peers(options, &load), EXIT_NO_SERVER),
        Some(Command::Ps(options)) => (terminal::ps(options, &load), EXIT_NO_SERVER),
        Some(Command::Tail(options)) => (terminal::tail(options, &load), EXIT_NO_SERVER),
        Some(Command::Drain(options)) => (drain::run(options, load), EXIT_NO_SERVER),
        Some(Command::Cluster(Cluster::Certs(options))) => {
            (cluster::certs::run(options), EXIT_START)
        }
        Some(Command::Top(page)) => match terminal::top(page, &load) {
            Ok(status) => return status,
            Err(why) => (Err(why), EXIT_NO_SERVER),
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => {
            for line in problems.lines() {
                print(&line);
            }
            ExitCode::from(failure)
        }
    }
}

/// Prints the configuration.
fn configuration(loaded: &LoadedConfig) {
    let preview = execution::preview(loaded);
    let _ = write!(io::stdout(), "{}\n# {preview}\n", loaded.render());
    for warning in &loaded.warnings {
        print(&format_args!("warning: {warning}"));
    }
}

/// Prints a message on standard error; ignores failures to write it.
fn print(message: &dyn Display) {
    let _ = writeln!(io::stderr(), "gorego: {message}");
}

fn load(cli: &Cli) -> Result<LoadedConfig, String> {
    let sources = Sources::from_process(cli.config.as_deref(), cli.set.clone())?;
    Config::load(&sources).map_err(|problems| problems.to_string())
}

fn serve(loaded: &LoadedConfig) -> Result<(), String> {
    let execution = execution::start(&loaded.config).map_err(|error| error.to_string())?;
    let (layer, spans) = traces::layer_of(&loaded.config.telemetry).unzip();
    logs::start(level(loaded.config.log_level), layer)?;
    if let Some(file) = &loaded.file {
        tracing::info!("configuration read from {}", file.display());
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    wire::run(loaded, spans, execution).map_err(|error| error.to_string())
}

const fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    }
}
