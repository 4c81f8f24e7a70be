//! dnsmasq, a DNS server by a third party.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Error, ErrorKind},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::PathBuf,
    process::Stdio,
    thread,
};

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::{executor::wait_until, install, process::Process};

/// The name with the addresses of nodes.
pub const ADDRESSES: &str = "nodes.gorego.test";
/// The name with the services of nodes.
pub const SERVICES: &str = "_gorego._tcp.gorego.test";

/// The port of the DNS: `resolv.conf` can name no other.
const PORT: u16 = 53;
/// The number of addresses tried, in case another process has the port of one.
const ADDRESSES_TRIED: usize = 5;

/// A server on a loopback address of its own. It runs from the first [`Self::serve`]. Dropping it kills the server, and
/// prints its log if the test failed.
#[derive(Debug)]
pub struct Dns {
    address: Ipv4Addr,
    dir: TempDir,
    process: Option<Process>,
}

/// Returns an address on loopback that probably no other process uses.
pub fn loopback() -> Ipv4Addr {
    Ipv4Addr::new(
        127,
        fastrand::u8(1..),
        fastrand::u8(..),
        fastrand::u8(1..255),
    )
}

impl Dns {
    /// Chooses the address. Returns `None` if this process may not open the port and is not root.
    pub fn new() -> Option<Self> {
        let mut refusal = None;
        let is_free = |address: &Ipv4Addr| {
            let place = (*address, PORT);
            let opened = UdpSocket::bind(place).and_then(|_| TcpListener::bind(place));
            refusal = opened.err();
            refusal.is_none()
        };
        let mut addresses = std::iter::repeat_with(loopback).take(ADDRESSES_TRIED);
        let Some(address) = addresses.find(is_free) else {
            let is_forbidden =
                refusal.as_ref().map(Error::kind) == Some(ErrorKind::PermissionDenied);
            assert!(
                is_forbidden && !geteuid().is_root(),
                "opening port {PORT} for a server of the DNS: {refusal:?}"
            );
            return None;
        };
        let dns = Self {
            address,
            dir: TempDir::new().expect("a temporary directory"),
            process: None,
        };
        let line = format!("nameserver {}\n", dns.address);
        fs::write(dns.resolver(), line).expect("writing resolv.conf");
        dns.set_addresses(&[]);
        Some(dns)
    }

    /// Returns the `resolv.conf` that names the server.
    pub fn resolver(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    /// Starts the server, or restarts it, with SRV records of these hosts below `gorego.test` and ports.
    pub fn serve(&mut self, services: &[(&str, u16)]) {
        self.process = None;
        let log = File::create(self.log_file()).expect("a file for the log");
        let mut command = install::dnsmasq();
        command
            .args(["--no-daemon", "--log-facility=-", "--conf-file=/dev/null"])
            .args([
                "--no-resolv",
                "--no-hosts",
                "--local=/test/",
                "--bind-interfaces",
            ])
            .arg(format!("--listen-address={}", self.address))
            .arg(format!("--port={PORT}"))
            .arg(format!("--addn-hosts={}", self.hosts_file().display()));
        for (host, port) in services {
            command.arg(format!("--srv-host={SERVICES},{host}.gorego.test,{port}"));
        }
        command.stdin(Stdio::null()).stderr(log);
        self.process = Some(Process::spawn(&mut command));
        // Until then, SIGHUP would end it.
        wait_until("dnsmasq has read its file", || {
            self.log().contains(": read ")
        });
    }

    /// Replaces all A records: of [`ADDRESSES`], or of other names.
    pub fn set_addresses(&self, addresses: &[(&str, Ipv4Addr)]) {
        let mut hosts = String::new();
        for (name, address) in addresses {
            writeln!(hosts, "{address} {name}").expect("a text takes any length");
        }
        fs::write(self.hosts_file(), hosts).expect("writing the addresses");
        if let Some(process) = &self.process {
            process.signal(Signal::HUP);
        }
    }

    fn hosts_file(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of dnsmasq on {}:", self.address);
            eprintln!("{}--- end of log", self.log());
        }
    }
}
