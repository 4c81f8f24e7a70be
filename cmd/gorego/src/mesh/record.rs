//! The facts that other nodes learn about this one.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
};

use gorego_cluster::record::Record;
use gorego_config::Config;
use gorego_storage::DigestFunction;
use tokio::net::TcpListener;

use super::Error;
use crate::{cli::VERSION, execution::LocalExecutor};

/// The name and the value of the property of nodes that take all properties.
pub(super) const ANY: &str = "*";
/// An address of another machine. The system chooses the own address with which this machine would reach it. Nothing is
/// sent there.
const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

/// Returns the record of this node.
pub(super) fn of(
    config: &Config,
    executor: &LocalExecutor,
    listener: &TcpListener,
) -> Result<Record, Error> {
    let options = executor.executor.options();
    let platform = options.platform.iter();
    let platform = platform.flat_map(|(name, values)| {
        let pair = |value: &String| (name.clone(), value.clone());
        values.iter().map(pair)
    });
    // A node that ignores unknown properties takes any value of any.
    let any = options
        .ignore_unknown_platform
        .then(|| (ANY.to_owned(), ANY.to_owned()));
    let platform = platform.chain(any);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let record = Record {
        node: executor.executor.generation().clone(),
        address: address(config, listener).map_err(Error::Address)?,
        slots: options.concurrency,
        memory: options.memory,
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        platform: platform.collect(),
        version: VERSION.to_owned(),
        draining: false,
        backing: backing(config),
    };
    record.check()?;
    Ok(record)
}

/// Returns the address at which other nodes reach this one.
fn address(config: &Config, listener: &TcpListener) -> io::Result<String> {
    let bound = listener.local_addr()?;
    let given = &config.cluster.advertise_addr;
    if !given.is_empty() {
        let mut cluster = config.cluster.clone();
        // The system may have chosen it.
        cluster.bind_port = bound.port();
        let with_port = || format!("{given}:{}", bound.port());
        return Ok(cluster.peer(given).unwrap_or_else(with_port));
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound.to_string());
    }
    let own = own_address()?;
    Ok(SocketAddr::new(own, bound.port()).to_string())
}

/// Returns the address from which this machine reaches others.
fn own_address() -> io::Result<IpAddr> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for (local, other) in ["0.0.0.0:0", "[::]:0"].into_iter().zip(ELSEWHERE) {
        let own = UdpSocket::bind(local).and_then(|socket| {
            socket.connect(other)?;
            socket.local_addr()
        });
        match own {
            Ok(own) => return Ok(own.ip()),
            Err(why) => error = why,
        }
    }
    Err(error)
}

/// Returns a hash of the backing cache, so that nodes with the same one recognize each other; 0 without one.
fn backing(config: &Config) -> u64 {
    let Some(target) = &config.backing_cache.target else {
        return 0;
    };
    let name = format!("{target} {}", config.backing_cache.instance_name);
    let digest = DigestFunction::Sha256.digest(name.as_bytes());
    let first = digest.hash().first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first)
}
