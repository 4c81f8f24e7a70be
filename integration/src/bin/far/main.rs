//! Measures the costs and savings of a proxy of a far cache, in comparison with direct calls to that
//! cache and with a server without a backing cache.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed measurement panics with its cause"
)]

mod builds;
mod calls;
mod report;

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use gorego_integration::link::{Link, Rate, Settings, parse_latency};

use crate::report::Report;

/// Measures gorego as a proxy of a cache behind a simulated link, all on this machine, and prints a table.
#[derive(Debug, Parser)]
#[command(name = "far")]
struct Args {
    /// The far cache.
    #[arg(long, value_enum, default_value_t = Peer::Gorego)]
    backing: Peer,
    /// The one-way latency of the link: 10ms, 250us, 1s.
    #[arg(long, default_value = "10ms", value_parser = parse_latency)]
    latency: Duration,
    /// The rate of each direction of the link.
    #[arg(long, default_value = "1Gbit")]
    rate: Rate,
    /// The number of turns of each side.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Measures a Bazel build that hits instead, which needs the root with the build clients.
    #[arg(long)]
    builds: bool,
}

impl Args {
    /// Creates the link to the cache at `to`.
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

/// The program of the far cache.
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
