//! Names of the DNS.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::sync::OnceCell;

use super::{Lookup, LookupError};

/// Looks up names at the servers of `/etc/resolv.conf`, and in `/etc/hosts`, or at one given server. Answers are not
/// cached: discovery is rare, and nodes move.
#[derive(Default)]
pub struct SystemLookup {
    server: Option<SocketAddr>,
    resolver: OnceCell<TokioResolver>,
}

impl SystemLookup {
    /// Creates a source that asks `server` instead of the servers of the host.
    pub fn at(server: SocketAddr) -> Self {
        Self {
            server: Some(server),
            resolver: OnceCell::new(),
        }
    }

    /// Returns the resolver. If it cannot be created, the next lookup retries.
    async fn resolver(&self) -> Result<&TokioResolver, LookupError> {
        self.resolver
            .get_or_try_init(async || build(self.server).map_err(|error| describe(&error)))
            .await
    }
}

fn build(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(server) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut it| {
                it.port = server.port();
                it
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

fn describe(error: &NetError) -> LookupError {
    LookupError(error.to_string())
}

#[async_trait]
impl Lookup for SystemLookup {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        match self.resolver().await?.lookup_ip(host).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) if error.is_no_records_found() && !error.is_nx_domain() => Ok(Vec::new()),
            Err(error) => Err(describe(&error)),
        }
    }

    async fn services(&self, name: &str) -> Result<Vec<(String, u16)>, LookupError> {
        match self.resolver().await?.lookup(name, RecordType::SRV).await {
            Ok(found) => {
                let services = found
                    .answers()
                    .iter()
                    .filter_map(|record| match &record.data {
                        RData::SRV(srv) => Some((srv.target.to_utf8(), srv.port)),
                        _ => None,
                    });
                Ok(services.collect())
            }
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(error) => Err(describe(&error)),
        }
    }
}
