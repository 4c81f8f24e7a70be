//! The listening socket of the metrics.

use std::io;

use gorego_config::{ListenAddr, LoadedConfig, Origin};
use tokio::net::TcpListener;

const KEY: &str = "telemetry.metrics_addr";

/// The error of a configured address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "{origin}: {KEY} = {address}: cannot listen: {source}; accepted: an address that is free, or \
     nothing for no metrics"
)]
pub(crate) struct Error {
    origin: Origin,
    address: ListenAddr,
    source: io::Error,
}

/// Listens on the configured address, if there is one.
pub(crate) async fn listen(loaded: &LoadedConfig) -> Result<Option<TcpListener>, Error> {
    let Some(address) = &loaded.config.telemetry.metrics_addr else {
        return Ok(None);
    };
    let listening = crate::listen::listen(address).await;
    let origin = loaded.origin(KEY).unwrap_or(&Origin::Default);
    required_unless_default(origin, address, listening)
}

/// Makes a failure to listen an error, unless the address is the default: that is the port of Prometheus
/// itself, which may run on the same host.
fn required_unless_default<T>(
    origin: &Origin,
    address: &ListenAddr,
    listening: io::Result<T>,
) -> Result<Option<T>, Error> {
    match listening {
        Ok(listener) => Ok(Some(listener)),
        Err(why) if *origin == Origin::Default => {
            tracing::warn!(
                "metrics are not served: cannot listen on {address}: {why}; set {KEY} to an address \
                 that is free, or to nothing for no metrics"
            );
            Ok(None)
        }
        Err(source) => Err(Error {
            origin: origin.clone(),
            address: address.clone(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(origin: &Origin) -> Result<Option<()>, Error> {
        let address = ListenAddr {
            host: None,
            port: 9090,
        };
        required_unless_default(origin, &address, Err(io::ErrorKind::AddrInUse.into()))
    }

    #[test]
    fn a_configured_address_in_use_refuses_the_start() {
        let variable = Origin::Variable("GOREGO_TELEMETRY_METRICS_ADDR".to_owned());
        for origin in [Origin::Set, variable] {
            let refused = taken(&origin).unwrap_err().to_string();
            let named = format!("{origin}: telemetry.metrics_addr = :9090: ");
            assert!(refused.starts_with(&named), "{refused}");
            assert!(refused.contains("in use"), "{refused}");
        }
    }

    #[test]
    fn the_default_address_in_use_only_disables_metrics() {
        assert_eq!(taken(&Origin::Default).unwrap(), None);
    }
}
