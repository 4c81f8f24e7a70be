//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::version::VERSION;

/// A fast, local, never-wrong cache for builds that speak the Remote Execution API.
#[derive(Debug, Parser)]
#[command(version = VERSION, about)]
pub(crate) struct Cli {
    /// Configuration file (YAML). Without it, config.yaml in the working directory, if there is one.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Sets one key, above the file and the environment: `--set local_cache.max_size_gb=50`
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub(crate) set: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Serve the cache until SIGTERM or SIGINT (the default).
    Serve,
    /// Print the effective configuration, and where each value came from.
    Config,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_serves_and_options_stand_on_either_side() {
        assert_eq!(Cli::parse_from(["gorego"]).command, None);
        for line in [
            ["gorego", "config", "--set", "a=b"],
            ["gorego", "--set", "a=b", "config"],
        ] {
            let cli = Cli::parse_from(line);
            assert_eq!(
                (cli.command, cli.set),
                (Some(Command::Config), vec!["a=b".to_owned()])
            );
        }
    }
}
