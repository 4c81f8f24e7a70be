//! Network namespaces that isolated commands have one after the other: to create one takes longer than a small command.
//!
//! They belong to the user namespace of the launcher, so that no command has rights over one. A namespace is kept as
//! long as no command sent a packet in it: afterwards a port may be in use for a while, and its statistics would
//! include those of earlier commands.

use std::{collections::HashMap, fs, fs::File, io, os::fd::AsFd as _};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{fork, supervisor::raise_loopback};

/// The namespace of this process.
const OWN: &str = "/proc/self/ns/net";
/// The counters of all packets in the namespace of this process.
const STATISTICS: [&str; 2] = ["/proc/self/net/snmp", "/proc/self/net/snmp6"];

/// The namespaces by the name of the command's control group, which two running commands never share.
#[derive(Debug)]
pub(super) struct Networks {
    own: File,
    kept: HashMap<u32, Network>,
}

/// A namespace with a loopback interface only, before any packet.
#[derive(Debug)]
pub(super) struct Network {
    namespace: File,
    statistics: String,
}

impl Networks {
    /// Creates the first one. Fails without the rights of root.
    pub(super) fn open() -> io::Result<Self> {
        let mut networks = Self {
            own: File::open(OWN)?,
            kept: HashMap::new(),
        };
        let first = networks.create()?;
        networks.kept.insert(1, first);
        Ok(networks)
    }

    /// Returns the namespace that was kept under this name, or a new one.
    pub(super) fn take(&mut self, name: u32) -> io::Result<Network> {
        let kept = self.kept.remove(&name);
        kept.map_or_else(|| self.create(), Ok)
    }

    fn create(&self) -> io::Result<Network> {
        fork::unshare_network()?;
        let created = raise_loopback().and_then(|()| {
            Ok(Network {
                namespace: File::open(OWN)?,
                statistics: statistics()?,
            })
        });
        enter(&self.own)?;
        created
    }

    /// Keeps a namespace in which no process is left, unless it was used. An error leaves this process in it.
    pub(super) fn give_back(&mut self, name: u32, network: Network) -> io::Result<()> {
        network.enter()?;
        let now = statistics();
        enter(&self.own)?;
        if now.is_ok_and(|now| now == network.statistics) {
            self.kept.insert(name, network);
        }
        Ok(())
    }
}

impl Network {
    /// Moves this process into the namespace.
    pub(super) fn enter(&self) -> io::Result<()> {
        enter(&self.namespace)
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    let kind = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
}

fn statistics() -> io::Result<String> {
    let read = STATISTICS.map(|path| match fs::read_to_string(path) {
        // Without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    });
    let [v4, v6] = read;
    Ok(v4? + &v6?)
}
