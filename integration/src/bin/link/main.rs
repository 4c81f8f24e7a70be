//! A network link on loopback, for measurements: forwards connections to a server with a latency
//! and a bandwidth, until it is killed or its standard input ends.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use gorego_integration::link::{Link, Rate, Settings, parse_latency};

/// Forwards connections to a server on this machine as a network would, and prints the address
/// that it listens on. Ends with its standard input.
#[derive(Debug, Parser)]
#[command(name = "link")]
struct Args {
    /// Where to listen, on a loopback address; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_parser = loopback)]
    listen: SocketAddr,
    /// The server, on a loopback address.
    #[arg(long, value_name = "IP:PORT", value_parser = loopback)]
    to: SocketAddr,
    /// One way: 10ms, 250us, 1s.
    #[arg(long, default_value = "0ms", value_parser = parse_latency)]
    latency: Duration,
    /// Of each direction: 1Gbit, 100Mbit, 64kbit [default: as fast as the machine].
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
    // Whoever started it holds the other end of the pipe, and ends with it.
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
    fn only_this_machine_is_reached() {
        assert!(loopback("127.0.0.1:80").is_ok());
        assert!(loopback("[::1]:80").is_ok());
        assert!(loopback("10.0.0.1:80").is_err());
    }
}
