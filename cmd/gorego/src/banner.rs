//! What a user wants to know at the start, whatever the log level.

use std::{fmt::Write as _, net::SocketAddr, path::Path};

use gorego_config::Target;
use gorego_telemetry::PATH;

use crate::version::VERSION;

/// The facts of the start.
pub(crate) struct Banner<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
    /// Where metrics are, if anywhere.
    pub(crate) metrics: Option<SocketAddr>,
    /// Where the local tier is and how much it may hold, in bytes.
    pub(crate) local: Option<(&'a Path, u64)>,
    pub(crate) backing: Option<&'a Target>,
}

impl Banner<'_> {
    /// The lines, each with its end.
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

/// An address that means all interfaces is none that a client can connect to.
fn reachable(address: &SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

/// A size for people: the largest unit of 1024 that leaves a whole number, or one decimal place.
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
    fn the_line_for_bazelrc_can_be_pasted() {
        let banner = text("[::]:50051", false);
        assert!(banner.contains("listening on [::]:50051\n"));
        assert!(banner.contains("build --remote_cache=grpc://localhost:50051\n"));
        assert!(banner.contains("data in /data, at most 10 GiB\n"));
        assert!(banner.contains("metrics on http://localhost:9090/metrics\n"));
        let banner = text("127.0.0.1:8", true);
        assert!(banner.contains("build --remote_cache=grpcs://127.0.0.1:8\n"));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(500), "500 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(10 << 40), "10 TiB");
    }
}
