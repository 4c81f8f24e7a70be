//! A server's log, and the addresses that it names there.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::ChildStderr,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

pub(super) type Log = Arc<Mutex<String>>;

/// The addresses that a server names.
pub(super) struct Told {
    pub(super) listening: mpsc::Receiver<SocketAddr>,
    pub(super) metrics: mpsc::Receiver<SocketAddr>,
}

/// Keeps what the server writes, until it ends, and sends an address once it names one.
pub(super) fn follow(stderr: ChildStderr, log: Log) -> Told {
    let (to_listening, listening) = mpsc::channel();
    let (to_metrics, metrics) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
            drop(log);
            // Nobody waits for them any more after the first.
            if let Some(address) = address_after("listening on ", &line) {
                let _ = to_listening.send(address);
            }
            if let Some(address) = address_after("metrics on http://", &line) {
                let _ = to_metrics.send(address);
            }
        }
    });
    Told { listening, metrics }
}

fn address_after(words: &str, line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(words)?;
    let end = rest
        .find(|c: char| !(c.is_ascii_hexdigit() || "[]:.".contains(c)))
        .unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

pub(super) fn text(log: &Log) -> String {
    log.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use super::address_after;

    #[test]
    fn the_address_is_found_in_a_plain_and_in_a_structured_line() {
        let expected = Some("127.0.0.1:4711".parse().unwrap());
        let listening_on = |line| address_after("listening on ", line);
        for line in [
            "gorego: listening on 127.0.0.1:4711",
            r#"{"message":"listening on 127.0.0.1:4711","level":"INFO"}"#,
        ] {
            assert_eq!(listening_on(line), expected);
        }
        assert_eq!(listening_on("listening on nothing yet"), None);
        let metrics = "metrics on http://127.0.0.1:4711/metrics";
        assert_eq!(address_after("metrics on http://", metrics), expected);
    }
}
