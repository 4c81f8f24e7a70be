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

/// Listens on the configured address, if there is one. A failure is an error, unless the address is the
/// default: that is the port of Prometheus itself, which may run on the same host.
pub(crate) async fn listen(loaded: &LoadedConfig) -> Result<Option<TcpListener>, Error> {
    let Some(address) = &loaded.config.telemetry.metrics_addr else {
        return Ok(None);
    };
    match crate::listen::listen(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) => {
            let error = Error {
                origin: loaded.origin(KEY).cloned().unwrap_or(Origin::Default),
                address: address.clone(),
                source,
            };
            unless_default(error).map(|()| None)
        }
    }
}

fn unless_default(error: Error) -> Result<(), Error> {
    if error.origin != Origin::Default {
        return Err(error);
    }
    tracing::warn!("metrics are not served: {error}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(origin: &Origin) -> Result<(), Error> {
        unless_default(Error {
            origin: origin.clone(),
            address: ListenAddr {
                host: None,
                port: 9090,
            },
            source: io::ErrorKind::AddrInUse.into(),
        })
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
        taken(&Origin::Default).unwrap();
    }
}
