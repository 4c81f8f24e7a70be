//! Logs on standard error: text on a terminal, JSON lines otherwise.

use std::io::{IsTerminal as _, stderr};

use gorego_config::LogLevel;
use tracing_subscriber::{
    filter::{ParseError, Targets},
    fmt,
    layer::SubscriberExt as _,
    registry,
    util::SubscriberInitExt as _,
};

/// Starts logging at this level, refined by `RUST_LOG`.
pub(crate) fn start(level: LogLevel) -> Result<(), String> {
    let filter = filter(level, std::env::var("RUST_LOG").ok().as_deref()).map_err(|error| {
        format!("RUST_LOG: {error}; accepted: a list such as info,gorego=debug")
    })?;
    let lines = fmt::layer()
        .with_writer(stderr)
        .with_target(false)
        // By default, a failure to write is reported by `eprintln!`, which panics if stderr is closed.
        .log_internal_errors(false);
    let logs = registry().with(filter);
    let started = if stderr().is_terminal() {
        logs.with(lines).try_init()
    } else {
        logs.with(lines.json().flatten_event(true)).try_init()
    };
    started.map_err(|error| error.to_string())
}

fn filter(level: LogLevel, refined: Option<&str>) -> Result<Targets, ParseError> {
    let mut filter = level.to_string();
    if matches!(level, LogLevel::Info | LogLevel::Warn) {
        // The HTTP/2 libraries warn about each client that violates the protocol.
        filter += ",h2=error,hyper=error";
    }
    // An empty part would mean the level `error`.
    let refined = refined.unwrap_or_default().split(',').map(str::trim);
    for part in refined.filter(|part| !part.is_empty()) {
        filter = filter + "," + part;
    }
    filter.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_refines_the_configured_level() {
        assert_eq!(filter(LogLevel::Debug, None).unwrap().to_string(), "debug");
        let both = filter(LogLevel::Warn, Some("gorego_server=debug"))
            .unwrap()
            .to_string();
        assert!(
            both.contains("warn") && both.contains("gorego_server=debug"),
            "{both}"
        );
        let trailing = filter(LogLevel::Warn, Some("gorego_server=debug, "));
        assert_eq!(trailing.unwrap().to_string(), both);
        for refused in ["gorego=loud=very", "gorego=loud"] {
            assert!(filter(LogLevel::Warn, Some(refused)).is_err(), "{refused}");
        }
    }

    #[test]
    fn warnings_of_the_http2_library_are_logged_only_on_request() {
        let quiet = filter(LogLevel::Info, None).unwrap().to_string();
        assert!(quiet.contains("h2=error"), "{quiet}");
        let asked = filter(LogLevel::Info, Some("h2=warn")).unwrap().to_string();
        assert!(
            asked.contains("h2=warn") && !asked.contains("h2=error"),
            "{asked}"
        );
    }
}
