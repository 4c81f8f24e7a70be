//! The addresses at which other nodes may be.
//!
//! A node finds others in a list of addresses, or under a DNS name. A failed lookup is logged and retried: a node that
//! finds no other is a cluster of one.

mod dns;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gorego_scheduler::Time;
use thiserror::Error;
use tokio::time::timeout;

pub use dns::SystemLookup;

/// The period of discovery while a node has no peer, and while it has some.
const PERIOD_ALONE: Duration = Duration::from_secs(10);
const PERIOD: Duration = Duration::from_secs(30);
/// The time that discovery takes at most.
const LIMIT: Duration = Duration::from_secs(8);
/// The most addresses that one place yields.
const MAX_ADDRESSES: usize = 1024;

/// The source of the addresses of other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// Hosts and ports, as `<host>:<port>`. All addresses of a host are taken.
    List(Vec<String>),
    /// A DNS name: the SRV records of a name that begins with `_`, the A and AAAA records of others with `port`.
    Dns {
        /// The name.
        name: String,
        /// The port of nodes without an SRV record.
        port: u16,
    },
}

/// A reason why a name has no addresses.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct LookupError(pub String);

/// A source of addresses.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// The addresses of a host, which may be an IP address itself. None is no error.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError>;

    /// The hosts and ports in the SRV records of `name`. None is no error.
    async fn services(&self, name: &str) -> Result<Vec<(String, u16)>, LookupError>;
}

/// Looks for other nodes.
pub struct Discovery {
    places: Places,
    lookup: Arc<dyn Lookup>,
    /// The failures of the last lookup, by place.
    failures: BTreeMap<String, LookupError>,
}

impl Discovery {
    /// Creates a discovery by the resolvers of the host.
    pub fn new(places: Places) -> Self {
        Self::with_lookup(places, Arc::new(SystemLookup::default()))
    }

    /// Creates a discovery by another source of addresses.
    pub fn with_lookup(places: Places, lookup: Arc<dyn Lookup>) -> Self {
        Self {
            places,
            lookup,
            failures: BTreeMap::new(),
        }
    }

    /// Returns the addresses of other nodes, and perhaps this one, in no particular order.
    ///
    /// Takes 8 s at most. A failure is logged when it begins, changes or ends.
    pub async fn look(&mut self) -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        let mut failures = BTreeMap::new();
        let places: Vec<(String, Option<u16>)> = match &self.places {
            Places::List(entries) => entries.iter().map(|entry| (entry.clone(), None)).collect(),
            Places::Dns { name, port } => vec![(name.clone(), Some(*port))],
        };
        let lookups = places.into_iter().map(|(place, port)| {
            let lookup = Arc::clone(&self.lookup);
            async move {
                let addresses = async {
                    match port {
                        None => entry_addresses(&*lookup, &place).await,
                        Some(port) => name_addresses(&*lookup, &place, port).await,
                    }
                };
                let late = Err(LookupError(format!(
                    "no answer within {} s",
                    LIMIT.as_secs()
                )));
                let addresses = timeout(LIMIT, addresses).await.unwrap_or(late);
                (place, addresses)
            }
        });
        for (place, addresses) in futures::future::join_all(lookups).await {
            match addresses {
                Ok(addresses) => found.extend(addresses.into_iter().take(MAX_ADDRESSES)),
                Err(error) => _ = failures.insert(place, error),
            }
        }
        self.report(failures);
        found
    }

    /// Logs the failures that differ from the last ones.
    fn report(&mut self, failures: BTreeMap<String, LookupError>) {
        for (place, error) in &failures {
            if self.failures.get(place) != Some(error) {
                tracing::warn!(%place, %error, "failed to look up other nodes");
            }
        }
        for place in self
            .failures
            .keys()
            .filter(|place| !failures.contains_key(*place))
        {
            tracing::info!(%place, "looked up other nodes again");
        }
        self.failures = failures;
    }

    /// Returns the places that yielded no address at the last lookup, and the reasons.
    pub fn failures(&self) -> &BTreeMap<String, LookupError> {
        &self.failures
    }
}

/// Returns the addresses of `<host>:<port>`.
async fn entry_addresses(lookup: &dyn Lookup, entry: &str) -> Result<Vec<SocketAddr>, LookupError> {
    let port = entry
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let Some((host, port)) = port else {
        return Err(LookupError("not <host>:<port>".into()));
    };
    host_addresses(lookup, host, port).await
}

/// Returns the addresses of a DNS name.
async fn name_addresses(
    lookup: &dyn Lookup,
    name: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, LookupError> {
    // Kubernetes answers for a service without `_` with the SRV records of all its ports, those for clients, too.
    if !name.starts_with('_') {
        return host_addresses(lookup, name, port).await;
    }
    let services = lookup.services(name).await?;
    if services.is_empty() {
        return Err(LookupError("no SRV records".into()));
    }
    let services = services.into_iter().take(MAX_ADDRESSES);
    let hosts = services.map(async |(host, port)| host_addresses(lookup, &host, port).await);
    let results = futures::future::join_all(hosts).await;
    let (found, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let found: Vec<_> = found.into_iter().flatten().flatten().collect();
    match failed.into_iter().next() {
        Some(failure) if found.is_empty() => failure,
        _ => Ok(found),
    }
}

async fn host_addresses(
    lookup: &dyn Lookup,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, LookupError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let addresses = lookup.addresses(bare.unwrap_or(host)).await?;
    if addresses.is_empty() {
        return Err(LookupError("no addresses".into()));
    }
    Ok(addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
}

/// The times of discovery: every 10 s while the node is alone, every 30 s otherwise, and at once after the start.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    last: Option<Time>,
}

impl Schedule {
    /// Returns the time of the next lookup. It changes as soon as the node is alone, or no longer alone.
    pub fn due(&self, alone: bool) -> Time {
        let period = if alone { PERIOD_ALONE } else { PERIOD };
        self.last.map_or(Time::ZERO, |last| last + period)
    }

    /// Records a lookup at `now`.
    pub fn looked(&mut self, now: Time) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests;
