//! The command line.

use std::{net::SocketAddr, str::FromStr};

use clap::{Parser, Subcommand};

use crate::{attack, error::Error, scenario::Scenario};

/// Measures REAPI caches and executors on this machine, one after the other, and prints a table.
#[derive(Debug, Parser)]
#[command(
    name = "load",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Args {
    /// A server to measure, on a loopback address. All are compared with the first.
    #[arg(long = "server", value_name = "NAME=IP:PORT,pid=PID", required = true)]
    pub(crate) servers: Vec<Target>,
    /// A scenario to run, in the order given [default: all but memory-64 and those that execute].
    #[arg(long = "scenario", value_name = "NAME", value_enum)]
    scenarios: Vec<Scenario>,
    /// The time for which a round begins calls.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) seconds: u64,
    /// The number of rounds of each server in each scenario.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) rounds: u32,
    /// The MiB after which a round of uploads ends early, so that stores do not overflow.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub(crate) upload_mib: u64,
    /// Prints JSON instead of a Markdown table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// A measurement other than the default.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Attack(attack::Args),
}

impl Args {
    /// Returns the requested scenarios, by default all that compare speed.
    pub(crate) fn scenarios(&self) -> Vec<Scenario> {
        if self.scenarios.is_empty() {
            Scenario::of_speed().collect()
        } else {
            self.scenarios.clone()
        }
    }
}

/// The name, address and process of a measured server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Target(text.to_owned());
        let (name, rest) = text.split_once('=').ok_or_else(malformed)?;
        let (address, pid) = rest.split_once(",pid=").ok_or_else(malformed)?;
        let address: SocketAddr = address.parse().map_err(|_| malformed())?;
        let pid = pid.parse().map_err(|_| malformed())?;
        if name.is_empty() || pid == 0 {
            return Err(malformed());
        }
        if !address.ip().to_canonical().is_loopback() {
            return Err(Error::NotLoopback(address));
        }
        Ok(Self {
            name: name.to_owned(),
            address,
            pid,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn servers_are_parsed_to_name_address_and_process() {
        let args =
            parse("load --server a=127.0.0.1:50051,pid=12 --server b=[::1]:1,pid=7").unwrap();
        let expected = Target {
            name: "a".to_owned(),
            address: ([127, 0, 0, 1], 50051).into(),
            pid: 12,
        };
        assert_eq!(args.servers[0], expected);
        assert_eq!(args.servers[1].address.to_string(), "[::1]:1");
    }

    #[test]
    fn only_loopback_addresses_are_accepted() {
        for address in [
            "192.0.2.1:80",
            "0.0.0.0:80",
            "[2001:db8::1]:80",
            "[::ffff:192.0.2.1]:80",
        ] {
            let error = parse(&format!("load --server a={address},pid=1")).unwrap_err();
            let message = error.to_string();
            assert!(message.contains("only loopback"), "{address}: {message}");
        }
        parse("load --server a=[::ffff:127.0.0.1]:80,pid=1").unwrap();
    }

    #[test]
    fn the_error_of_a_malformed_server_names_the_accepted_form() {
        for server in [
            "127.0.0.1:80,pid=1",
            "a=127.0.0.1:80",
            "a=127.0.0.1,pid=1",
            "a=localhost:80,pid=1",
            "a=127.0.0.1:80,pid=x",
            "a=127.0.0.1:80,pid=0",
            "=127.0.0.1:80,pid=1",
        ] {
            let error = parse(&format!("load --server {server}")).unwrap_err();
            assert!(
                error.to_string().contains("NAME=IP:PORT,pid=PID"),
                "{error}"
            );
        }
    }

    #[test]
    fn all_scenarios_of_caches_except_memory_run_by_default() {
        let server = "load --server a=127.0.0.1:1,pid=1";
        let names = |args: Args| {
            args.scenarios()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let all = names(parse(server).unwrap());
        assert_eq!(all.len(), 14);
        for other in ["memory-64", "execute"] {
            assert!(!all.contains(&other.to_owned()));
        }
        let line = format!("{server} --scenario memory-64 --scenario write-4k");
        assert_eq!(names(parse(&line).unwrap()), ["memory-64", "write-4k"]);
        parse(&format!("{server} --scenario unknown")).unwrap_err();
    }

    #[test]
    fn time_rounds_and_volume_are_bounded() {
        for option in [
            "--seconds 0",
            "--seconds 61",
            "--rounds 0",
            "--rounds 21",
            "--upload-mib 0",
        ] {
            parse(&format!("load --server a=127.0.0.1:1,pid=1 {option}")).unwrap_err();
        }
    }
}
