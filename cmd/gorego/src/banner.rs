//! The lines printed at the start, at any log level.

use std::{fmt::Write as _, net::SocketAddr, path::Path};

use gorego_config::Target;
use gorego_telemetry::PATH;

use crate::version::VERSION;

/// The values that the banner shows.
pub(crate) struct Banner<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
    /// The address of the metrics, if they are served.
    pub(crate) metrics: Option<SocketAddr>,
    /// The directory of the local tier, and its size limit in bytes.
    pub(crate) local: Option<(&'a Path, u64)>,
    pub(crate) backing: Option<&'a Target>,
}

impl Banner<'_> {
    /// Renders the banner as complete lines.
    pub(crate) fn text(&self) -> String {
        let Self {
            address,
            tls,
            metrics,
            local,
            backing,
        } = self;
        let scheme = if *tls { "grpcs" } else { "grpc" };
        let host = reachable(address);
        let mut text = format!("gorego {VERSION}\nlistening on {address}\n");
        // Writing to a string does not fail.
        if let Some((dir, max_bytes)) = local {
            let (dir, size) = (dir.display(), size(*max_bytes));
            let _ = writeln!(text, "data in {dir}, at most {size}");
        }
        if let Some(target) = backing {
            let _ = writeln!(text, "in front of {target}");
        }
        if let Some(address) = metrics {
            let _ = writeln!(text, "metrics on http://{}{PATH}", reachable(address));
        }
        let _ = writeln!(
            text,
            "for Bazel, add to .bazelrc:  build --remote_cache={scheme}://{host}"
        );
        text
    }
}

/// Returns an address that clients can connect to: the unspecified address stands for `localhost`.
fn reachable(address: &SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

/// Renders a size in its largest binary unit, with at most one decimal place.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    for (unit, factor) in UNITS {
        if bytes >= factor {
            let (whole, tenth) = (bytes / factor, bytes % factor * 10 / factor);
            return match tenth {
                0 => format!("{whole} {unit}"),
                _ => format!("{whole}.{tenth} {unit}"),
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: &str, tls: bool) -> String {
        let address = address.parse().unwrap();
        Banner {
            address,
            tls,
            metrics: Some("[::]:9090".parse().unwrap()),
            local: Some((Path::new("/data"), 10 << 30)),
            backing: None,
        }
        .text()
    }

    #[test]
    fn the_line_for_bazelrc_names_an_address_for_clients() {
        let banner = text("[::]:50051", false);
        assert!(banner.contains("listening on [::]:50051\n"));
        assert!(banner.contains("build --remote_cache=grpc://localhost:50051\n"));
        assert!(banner.contains("data in /data, at most 10 GiB\n"));
        assert!(banner.contains("metrics on http://localhost:9090/metrics\n"));
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
