//! The rule by which clients see the page.

use std::net::IpAddr;

use http::{HeaderMap, header, request::Parts};

/// The clients that may see the page, its JSON and the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ui {
    /// No client.
    Off,
    /// Clients on this machine that name it as such, without a proxy.
    Local,
    /// Every client.
    On,
}

impl Ui {
    /// Returns the reason to refuse a request of `peer`.
    pub(super) fn refusal(self, peer: IpAddr, request: &Parts) -> Option<&'static str> {
        match self {
            Self::Off => Some("the page is off: telemetry.ui is off; set it to local or on"),
            // A dual-stack socket shows IPv4 as a part of IPv6.
            Self::Local if !peer.to_canonical().is_loopback() => Some(
                "the page is for this machine only: telemetry.ui is local; set it to on for \
                 every client",
            ),
            Self::Local if is_forwarded(&request.headers) => Some(
                "the page is not served through a proxy: telemetry.ui is local; set it to on for \
                 every client",
            ),
            // Another site may have its name resolved to this machine.
            Self::Local if !names_this_machine(request) => Some(
                "the page is served as localhost, 127.0.0.1 or [::1] only: telemetry.ui is local; \
                 set it to on for every name",
            ),
            Self::Local | Self::On => None,
        }
    }
}

/// Whether a browser sent the request for a page of another site. Such a page can read no response, but its
/// requests would cost something.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site")
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        name == "forwarded" || name.starts_with("x-forwarded-")
    })
}

/// Whether all names of the host, of which there is at least one, are of the loopback interface.
fn names_this_machine(request: &Parts) -> bool {
    let hosts = request.headers.get_all(header::HOST).iter();
    let mut hosts = hosts.map(|host| host.to_str().unwrap_or_default());
    let target = request.uri.authority();
    target.is_none_or(|target| is_loopback(target.as_str()))
        && hosts.next().is_some_and(is_loopback)
        && hosts.next().is_none()
}

fn is_loopback(host: &str) -> bool {
    // The colons of an IPv6 address are in brackets.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, "0"),
    };
    let known = ["localhost", "127.0.0.1", "[::1]"];
    let is_port = port.parse::<u16>().is_ok() && !port.starts_with('+');
    known.iter().any(|known| name.eq_ignore_ascii_case(known)) && is_port
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn allows(ui: Ui, peer: &str, headers: &[(&str, &str)]) -> bool {
        let refusal = ui.refusal(peer.parse().unwrap(), &request("/", headers));
        assert!(refusal.is_none_or(|why| why.contains("telemetry.ui")));
        refusal.is_none()
    }

    #[test]
    fn local_pages_need_a_loopback_peer() {
        let headers = [("host", "localhost:9090")];
        for peer in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert!(allows(Ui::Local, peer, &headers), "{peer}");
        }
        for peer in ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0"] {
            assert!(!allows(Ui::Local, peer, &headers), "{peer}");
            assert!(allows(Ui::On, peer, &headers), "{peer}");
        }
    }

    #[test]
    fn local_pages_need_a_name_of_the_loopback_interface() {
        for host in [
            "localhost",
            "LocalHost:80",
            "127.0.0.1",
            "127.0.0.1:9090",
            "[::1]",
            "[::1]:9090",
        ] {
            assert!(allows(Ui::Local, "::1", &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.example:9090",
            "localhost:x",
            "localhost:+80",
            "localhost:",
            "localhost:9090:1",
            "::1",
            "[::1]x",
            "127.0.0.1.nip.io",
            "user@localhost",
        ] {
            assert!(!allows(Ui::Local, "::1", &[("host", host)]), "{host}");
        }
        assert!(!allows(Ui::Local, "::1", &[]));
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert!(!allows(Ui::Local, "::1", &two));
    }

    #[test]
    fn an_absolute_target_counts_as_a_name_of_the_host() {
        let peer = "::1".parse().unwrap();
        let headers = [("host", "localhost")];
        let refusal = |target| Ui::Local.refusal(peer, &request(target, &headers));
        assert_eq!(refusal("http://localhost/"), None);
        assert!(refusal("http://evil.example/").is_some());
    }

    #[test]
    fn local_pages_are_not_served_through_a_proxy() {
        for name in ["Forwarded", "X-Forwarded-For", "x-forwarded-anything"] {
            let headers = [("host", "localhost"), (name, "")];
            assert!(!allows(Ui::Local, "::1", &headers), "{name}");
            assert!(allows(Ui::On, "::1", &headers), "{name}");
        }
    }

    #[test]
    fn off_serves_the_page_to_no_client() {
        assert!(!allows(Ui::Off, "::1", &[("host", "localhost")]));
    }
}
