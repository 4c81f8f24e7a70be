//! The listening socket of the metrics, and the calls that they count.

use gorego_config::{LoadedConfig, Origin};
use gorego_grpc::{CallHead, ObservedCall, Observer};
use gorego_telemetry::{Calls, OngoingCall};
use tokio::net::TcpListener;

const KEY: &str = "telemetry.metrics_addr";

/// Observes the calls of the gRPC server.
#[derive(Debug)]
pub(crate) struct CallObserver(pub(crate) Calls);

impl Observer for CallObserver {
    fn began(&self, call: &CallHead<'_>) -> Box<dyn ObservedCall> {
        Box::new(CountedCall(self.0.began(
            call.path,
            call.headers,
            call.peer,
        )))
    }
}

struct CountedCall(OngoingCall);

impl ObservedCall for CountedCall {
    fn within(&self, step: &mut dyn FnMut()) {
        self.0.within(step);
    }

    fn ended(self: Box<Self>, code: tonic::Code) {
        self.0.ended(code.into());
    }
}

/// Listens on the configured address, if there is one.
pub(crate) async fn listen(loaded: &LoadedConfig) -> Result<Option<TcpListener>, String> {
    let Some(address) = &loaded.config.telemetry.metrics_addr else {
        return Ok(None);
    };
    match crate::listen::listen(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(why) => {
            let problem = format!(
                "{KEY} = {address}: cannot listen: {why}; accepted: an address that is free, or \
                 nothing for no metrics"
            );
            let origin = loaded.origin(KEY).unwrap_or(&Origin::Default);
            unless_default(origin, &problem).map(|()| None)
        }
    }
}

/// Returns the problem as an error, or logs it if the address is the default: Prometheus itself uses
/// that port.
fn unless_default(origin: &Origin, problem: &str) -> Result<(), String> {
    if *origin != Origin::Default {
        return Err(format!("{origin}: {problem}"));
    }
    tracing::warn!("metrics are not served: {problem}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_address_in_use_refuses_the_start() {
        let variable = Origin::Variable("GOREGO_TELEMETRY_METRICS_ADDR".to_owned());
        for origin in [Origin::Set, variable] {
            let refused = unless_default(&origin, "in use").unwrap_err();
            assert_eq!(refused, format!("{origin}: in use"));
        }
    }

    #[test]
    fn the_default_address_in_use_only_disables_metrics() {
        unless_default(&Origin::Default, "in use").unwrap();
    }
}
