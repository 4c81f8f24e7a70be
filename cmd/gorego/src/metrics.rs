//! Where Prometheus finds the metrics.

use std::io;

use gorego_config::{ListenAddr, Loaded, Origin};
use tokio::net::TcpListener;

const KEY: &str = "telemetry.metrics_addr";

/// The address that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "{origin}: {KEY} = {address}: cannot listen there: {source}; accepted: an address that is \
     free, or nothing to do without metrics"
)]
pub(crate) struct Error {
    origin: Origin,
    address: ListenAddr,
    source: io::Error,
}

/// Listens where the configuration says, if it says so.
pub(crate) async fn listen(loaded: &Loaded) -> Result<Option<TcpListener>, Error> {
    let Some(address) = &loaded.config.telemetry.metrics_addr else {
        return Ok(None);
    };
    let listening = crate::listen::listen(address).await;
    let origin = loaded.origin(KEY).unwrap_or(&Origin::Default);
    wanted(origin, address, listening)
}

/// Whoever named an address gets it, or hears why not. The default is Prometheus' own port, so on
/// its host others have it: that is no reason not to serve builds.
fn wanted<T>(
    origin: &Origin,
    address: &ListenAddr,
    listening: io::Result<T>,
) -> Result<Option<T>, Error> {
    match listening {
        Ok(listener) => Ok(Some(listener)),
        Err(why) if *origin == Origin::Default => {
            tracing::warn!(
                "there are no metrics: cannot listen on {address}: {why}; set {KEY} to an address \
                 that is free, or to nothing to do without them"
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
        wanted(origin, &address, Err(io::ErrorKind::AddrInUse.into()))
    }

    #[test]
    fn an_address_that_was_asked_for_is_had_or_the_start_is_refused() {
        let variable = Origin::Variable("GOREGO_TELEMETRY_METRICS_ADDR".to_owned());
        for origin in [Origin::Set, variable] {
            let refused = taken(&origin).unwrap_err().to_string();
            let named = format!("{origin}: telemetry.metrics_addr = :9090: ");
            assert!(refused.starts_with(&named), "{refused}");
            assert!(refused.contains("in use"), "{refused}");
        }
    }

    #[test]
    fn a_default_that_others_have_is_done_without() {
        assert_eq!(taken(&Origin::Default).unwrap(), None);
    }
}
