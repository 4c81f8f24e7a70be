//! What a user wants to know at the start, whatever the log level.

use std::{net::SocketAddr, path::Path};

use crate::version::VERSION;

/// The facts of the start.
pub(crate) struct Banner<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
    pub(crate) dir: &'a Path,
    pub(crate) max_bytes: u64,
}

impl Banner<'_> {
    /// The lines, each with its end.
    pub(crate) fn text(&self) -> String {
        let Self {
            address,
            tls,
            dir,
            max_bytes,
        } = self;
        let scheme = if *tls { "grpcs" } else { "grpc" };
        // An address that means all interfaces is none that a client can connect to.
        let host = if address.ip().is_unspecified() {
            format!("localhost:{}", address.port())
        } else {
            address.to_string()
        };
        format!(
            "gorego {version}\n\
             listening on {address}\n\
             data in {dir}, at most {size}\n\
             for Bazel, add to .bazelrc:  build --remote_cache={scheme}://{host}\n",
            version = VERSION,
            dir = dir.display(),
            size = size(*max_bytes),
        )
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
            dir: Path::new("/data"),
            max_bytes: 10 << 30,
        }
        .text()
    }

    #[test]
    fn the_line_for_bazelrc_can_be_pasted() {
        let banner = text("[::]:50051", false);
        assert!(banner.contains("listening on [::]:50051\n"));
        assert!(banner.contains("build --remote_cache=grpc://localhost:50051\n"));
        assert!(banner.contains("data in /data, at most 10 GiB\n"));
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
