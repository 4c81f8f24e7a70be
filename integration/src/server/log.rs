//! A server's log, and the addresses in it.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::ChildStderr,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

pub(super) type Log = Arc<Mutex<String>>;

/// The addresses that a server logs.
pub(super) struct Addresses {
    pub(super) listening: mpsc::Receiver<SocketAddr>,
    pub(super) metrics: mpsc::Receiver<SocketAddr>,
}

/// Appends the server's output to `log` until the server ends, and sends the addresses in it.
pub(super) fn follow(stderr: ChildStderr, log: Log) -> Addresses {
    let (to_listening, listening) = mpsc::channel();
    let (to_metrics, metrics) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
            drop(log);
            // Fails if the receiver is gone, which waits for the first address only.
            if let Some(address) = address_after("listening on ", &line) {
                let _ = to_listening.send(address);
            }
            if let Some(address) = address_after("metrics on http://", &line) {
                let _ = to_metrics.send(address);
            }
        }
    });
    Addresses { listening, metrics }
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
    fn an_address_is_found_in_plain_and_structured_lines() {
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
