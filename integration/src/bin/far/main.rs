//! What a proxy costs, and what it saves, in front of a cache that is far away: each figure beside
//! that of a client that asks the cache itself, or a server that has no cache behind it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot be made ends with the reason"
)]

mod builds;
mod calls;
mod report;

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use gorego_integration::link::{Link, Rate, Settings, parse_latency};

use crate::report::Report;

/// Measures a gorego in front of a cache behind a link with a latency and a rate, all of them on this
/// machine, and prints a table.
#[derive(Debug, Parser)]
#[command(name = "far")]
struct Args {
    /// The cache that is far away.
    #[arg(long, value_enum, default_value_t = Peer::Gorego)]
    backing: Peer,
    /// Of the link to it, one way: 10ms, 250us, 1s.
    #[arg(long, default_value = "10ms", value_parser = parse_latency)]
    latency: Duration,
    /// Of each direction of the link.
    #[arg(long, default_value = "1Gbit")]
    rate: Rate,
    /// How often each side takes its turn.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Measure a Bazel build that hits instead, which takes the root with the build clients.
    #[arg(long)]
    builds: bool,
}

impl Args {
    /// The link to the cache at `to`.
    fn link(&self, to: SocketAddr) -> Link {
        Link::with(
            to,
            Settings {
                latency: self.latency,
                rate: Some(self.rate),
                ..Settings::default()
            },
        )
    }
}

/// A server to stand behind the proxy.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Peer {
    Gorego,
    BazelRemote,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let mut report = Report::default();
    if args.builds {
        builds::measure(&args, &mut report);
    } else {
        calls::measure(&args, &mut report).await;
    }
    print!("{report}");
}
