//! The lines printed at the start, at any log level.

use std::net::SocketAddr;

use gorego_config::{Config, Ui};
use gorego_telemetry::web::METRICS;

use crate::{cli::VERSION, execution::is_worker};

/// Renders the banner as complete lines: the address of gorego, the addresses of the page and the metrics if they are
/// served, and how actions are executed, with their limits, or why they are not.
pub(crate) fn banner(
    config: &Config,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    executes: &Result<Vec<String>, String>,
) -> String {
    let mut lines = vec![
        format!("gorego {VERSION}"),
        format!("listening on {address}"),
    ];
    let cache = &config.local_cache;
    if cache.enabled {
        let (dir, size) = (cache.dir.display(), size(cache.max_size_gb.bytes()));
        lines.push(format!("data in {dir}, at most {size}"));
    }
    if let Some(target) = &config.backing_cache.target {
        lines.push(format!("in front of {target}"));
    }
    if let Some(address) = metrics {
        if config.telemetry.ui != Ui::Off {
            lines.push(format!("page on http://{}/", reachable(address)));
        }
        lines.push(format!("metrics on http://{}{METRICS}", reachable(address)));
    }
    match executes {
        Ok(how) => lines.extend(how.iter().cloned()),
        Err(why) => lines.push(format!("executing no actions: {why}")),
    }
    let scheme = if config.tls.enabled { "grpcs" } else { "grpc" };
    let host = reachable(address);
    let kind = if executes.is_ok() && !is_worker(config) {
        "executor"
    } else {
        "cache"
    };
    lines.push(format!(
        "for Bazel, add to .bazelrc:  build --remote_{kind}={scheme}://{host}\n"
    ));
    lines.join("\n")
}

/// Returns an address that clients can connect to: the unspecified address stands for `localhost`.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

/// Renders a size in its largest binary unit, with at most one decimal place.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, bits)| bytes >> bits > 0);
    let (unit, bits) = unit.unwrap_or(("bytes", 0));
    let tenths = (u128::from(bytes) * 10) >> bits;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: &str, tls: bool) -> String {
        let mut config = Config::default();
        config.tls.enabled = tls;
        config.local_cache.dir = "/data".into();
        let metrics = "[::]:9090".parse().unwrap();
        banner(
            &config,
            address.parse().unwrap(),
            Some(metrics),
            &Err("why".to_owned()),
        )
    }

    #[test]
    fn the_line_for_bazelrc_names_an_address_for_clients() {
        let banner = text("[::]:50051", false);
        assert!(banner.contains("listening on [::]:50051\n"));
        assert!(banner.contains("build --remote_cache=grpc://localhost:50051\n"));
        assert!(banner.contains("data in /data, at most 10 GiB\n"));
        assert!(banner.contains("page on http://localhost:9090/\n"));
        assert!(banner.contains("metrics on http://localhost:9090/metrics\n"));
        assert!(banner.contains("executing no actions: why\n"));
        let banner = text("127.0.0.1:8", true);
        assert!(banner.contains("build --remote_cache=grpcs://127.0.0.1:8\n"));
    }

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        assert_eq!(size(500), "500 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(10 << 40), "10 TiB");
    }
}
