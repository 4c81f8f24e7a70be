//! Simulates a network link on loopback, for measurements.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use gorego_integration::link::{Link, Rate, Settings, parse_latency};

/// Forwards connections to a server on this machine with a latency and a rate. Prints the address that it
/// listens on, and ends with its standard input.
#[derive(Debug, Parser)]
#[command(name = "link")]
struct Args {
    /// The loopback address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_parser = loopback)]
    listen: SocketAddr,
    /// The loopback address of the server.
    #[arg(long, value_name = "IP:PORT", value_parser = loopback)]
    to: SocketAddr,
    /// The one-way latency: 10ms, 250us, 1s.
    #[arg(long, default_value = "0ms", value_parser = parse_latency)]
    latency: Duration,
    /// The rate of each direction: 1Gbit, 100Mbit, 64kbit [default: no limit].
    #[arg(long)]
    rate: Option<Rate>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let link = Link::with(
        args.to,
        Settings {
            listen: args.listen,
            latency: args.latency,
            rate: args.rate,
            ..Settings::default()
        },
    );
    println!("{}", link.address());
    // The parent holds the other end of the pipe, which is closed when the parent ends.
    match io::copy(&mut io::stdin().by_ref(), &mut io::sink()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("link: reading standard input: {error}");
            ExitCode::FAILURE
        }
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|e| format!("{e}"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!("{address} is not on loopback"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_accepted() {
        assert!(loopback("127.0.0.1:80").is_ok());
        assert!(loopback("[::1]:80").is_ok());
        assert!(loopback("10.0.0.1:80").is_err());
    }
}
