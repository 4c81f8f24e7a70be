//! Logs on standard error: for people on a terminal, JSON lines otherwise.

use std::io::{IsTerminal as _, stderr};

use gorego_config::LogLevel;
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

/// Starts logging. `RUST_LOG` refines the level, or replaces it.
pub(crate) fn start(level: LogLevel) -> Result<(), String> {
    let filter = filter(level, std::env::var("RUST_LOG").ok().as_deref())
        .map_err(|error| format!("RUST_LOG: {error}; accepted is a list like info,gorego=debug"))?;
    let logs = fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_target(false)
        // A log that cannot be written must not stop what it tells about.
        .log_internal_errors(false);
    let started = if stderr().is_terminal() {
        logs.try_init()
    } else {
        logs.json().flatten_event(true).try_init()
    };
    started.map_err(|error| error.to_string())
}

fn filter(level: LogLevel, refined: Option<&str>) -> Result<EnvFilter, ParseError> {
    let level = match level {
        // Their warnings are of single clients, one for each that breaks a rule.
        LogLevel::Info | LogLevel::Warn => format!("{level},h2=error,hyper=error"),
        _ => level.to_string(),
    };
    match refined.filter(|text| !text.is_empty()) {
        Some(refined) => EnvFilter::builder().parse(format!("{level},{refined}")),
        None => EnvFilter::builder().parse(level),
    }
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
        assert!(filter(LogLevel::Warn, Some("gorego=loud=very")).is_err());
    }

    #[test]
    fn the_http2_library_warns_of_single_clients_only_where_it_was_asked_to() {
        let quiet = filter(LogLevel::Info, None).unwrap().to_string();
        assert!(quiet.contains("h2=error"), "{quiet}");
        let asked = filter(LogLevel::Info, Some("h2=warn")).unwrap().to_string();
        assert!(
            asked.contains("h2=warn") && !asked.contains("h2=error"),
            "{asked}"
        );
    }
}
