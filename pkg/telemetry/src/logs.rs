//! Logs on standard error: text on a terminal, JSON lines otherwise. Lines of a call carry its ids.

use std::{
    env,
    fmt::{self, Write as _},
    io::{IsTerminal as _, stderr},
};

use gorego_storage::span::TARGET as SPANS;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Layer as _,
    filter::{ParseError, Targets},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
        layer,
    },
    layer::SubscriberExt as _,
    registry,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{Call, traces::SpanLayer};

/// The target of the access log, a line for each call. Off unless `RUST_LOG` names it.
pub const ACCESS: &str = "access";

/// Starts logging at this level, refined by `RUST_LOG`. Spans are recorded if there is a layer for them.
pub fn start(level: Level, spans: Option<SpanLayer>) -> Result<(), String> {
    let filter = filter(level, env::var("RUST_LOG").ok().as_deref()).map_err(|error| {
        format!("RUST_LOG: {error}; accepted: a list such as info,gorego=debug,{ACCESS}=info")
    })?;
    let started = subscriber(filter, spans).try_init();
    started.map_err(|error| error.to_string())
}

fn subscriber(filter: Targets, spans: Option<SpanLayer>) -> impl Subscriber + Send + Sync {
    let lines = layer()
        .with_writer(stderr)
        .with_target(false)
        // By default, a failure to write is reported by `eprintln!`, which panics if stderr is closed.
        .log_internal_errors(false);
    let lines = if stderr().is_terminal() {
        let colored = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let format = |format: Format| CallFormat(format.with_ansi(colored), Ids::text);
        lines.map_event_format(format).with_filter(filter).boxed()
    } else {
        let lines = lines.json().flatten_event(true);
        let format = |format| CallFormat(format, Ids::json);
        lines.map_event_format(format).with_filter(filter).boxed()
    };
    // In one list: an absent layer beside another would keep `tracing` from skipping disabled events by themselves.
    let layers: Vec<_> = spans.into_iter().chain([lines]).collect();
    registry().with(layers)
}

fn filter(level: Level, refined: Option<&str>) -> Result<Targets, ParseError> {
    let mut filter = format!("{level},{ACCESS}=off,{SPANS}=off");
    if matches!(level, Level::INFO | Level::WARN) {
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

/// The ids of a line's call, by name.
struct Ids(Vec<(&'static str, String)>);

impl Ids {
    /// Returns the ids of the current call; none outside of calls.
    fn current() -> Self {
        let Some(call) = Call::current() else {
            return Self(Vec::new());
        };
        let trace = call.trace().into_iter().flat_map(|trace| {
            [
                ("trace_id", trace.trace_id().to_string()),
                ("span_id", trace.span_id().to_string()),
            ]
        });
        let sent = call.metadata().map(|sent| &sent.tool_invocation_id);
        let invocation = sent.filter(|id| !id.is_empty()).cloned();
        let invocation = invocation.map(|id| ("invocation_id", id));
        Self(trace.chain(invocation).collect())
    }

    /// Inserts the ids at the end of a line of text.
    fn text(&self, line: &mut String) {
        let end = line.trim_end().len();
        let mut fields = String::new();
        for (name, id) in &self.0 {
            let _ = write!(fields, " {name}={}", id.escape_debug());
        }
        line.insert_str(end, &fields);
    }

    /// Inserts the ids at the end of a line of JSON, an object.
    fn json(&self, line: &mut String) {
        let end = line.rfind('}').unwrap_or(line.len());
        let mut fields = String::new();
        for (name, id) in &self.0 {
            let id = serde_json::Value::from(id.as_str());
            let _ = write!(fields, ",\"{name}\":{id}");
        }
        line.insert_str(end, &fields);
    }
}

/// A format of lines, and the function that adds the ids of the call.
struct CallFormat<F>(F, fn(&Ids, &mut String));

impl<S, N, F> FormatEvent<S, N> for CallFormat<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let ids = Ids::current();
        if ids.0.is_empty() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        self.1(&ids, &mut line);
        writer.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use tracing::{
        Metadata,
        callsite::{Callsite, Identifier},
        field::FieldSet,
        metadata::Kind,
        subscriber::Interest,
    };
    use tracing_subscriber::filter::LevelFilter;

    use super::*;
    use crate::traces::layer as layer_of_spans;

    /// The line of the access log.
    struct AccessLine;

    static LINE: Metadata<'static> = Metadata::new(
        "line",
        ACCESS,
        Level::INFO,
        None,
        None,
        None,
        FieldSet::new(&[], Identifier(&AccessLine)),
        Kind::EVENT,
    );

    impl Callsite for AccessLine {
        fn set_interest(&self, _: Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            &LINE
        }
    }

    #[test]
    fn disabled_events_cost_nothing_with_and_without_spans() {
        for traces in [false, true] {
            let spans = traces.then(|| layer_of_spans().0);
            let logs = subscriber(filter(Level::INFO, None).unwrap(), spans);
            assert_eq!(logs.max_level_hint(), Some(LevelFilter::INFO));
            assert!(logs.register_callsite(&LINE).is_never(), "{traces}");
        }
    }

    #[test]
    fn rust_log_refines_the_configured_level() {
        let debug = filter(Level::DEBUG, None).unwrap().to_string();
        assert!(debug.contains("debug"), "{debug}");
        let both = filter(Level::WARN, Some("gorego_server=debug"))
            .unwrap()
            .to_string();
        assert!(
            both.contains("warn") && both.contains("gorego_server=debug"),
            "{both}"
        );
        let trailing = filter(Level::WARN, Some("gorego_server=debug, "));
        assert_eq!(trailing.unwrap().to_string(), both);
        for refused in ["gorego=loud=very", "gorego=loud"] {
            assert!(filter(Level::WARN, Some(refused)).is_err(), "{refused}");
        }
    }

    #[test]
    fn warnings_of_the_http2_library_are_logged_only_on_request() {
        let quiet = filter(Level::INFO, None).unwrap().to_string();
        assert!(quiet.contains("h2=error"), "{quiet}");
        let asked = filter(Level::INFO, Some("h2=warn")).unwrap().to_string();
        assert!(
            asked.contains("h2=warn") && !asked.contains("h2=error"),
            "{asked}"
        );
    }

    #[test]
    fn the_access_log_is_off_unless_rust_log_names_it() {
        let access = |refined| filter(Level::TRACE, refined).unwrap();
        assert!(!access(None).would_enable(ACCESS, &Level::ERROR));
        assert!(!access(Some("debug")).would_enable(ACCESS, &Level::ERROR));
        assert!(access(Some("access=info")).would_enable(ACCESS, &Level::INFO));
    }

    #[test]
    fn ids_end_a_line_and_cannot_break_it() {
        let ids = Ids(vec![
            ("trace_id", "4bf9".to_owned()),
            ("invocation_id", "a\"}\n{\u{1b}[31m".to_owned()),
        ]);
        let mut text = "INFO stored\n".to_owned();
        ids.text(&mut text);
        let expected = "INFO stored trace_id=4bf9 invocation_id=a\\\"}\\n{\\u{1b}[31m\n";
        assert_eq!(text, expected);
        let mut json = "{\"message\":\"stored }\"}\n".to_owned();
        ids.json(&mut json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["message"], "stored }");
        assert_eq!(json["trace_id"], "4bf9");
        assert_eq!(json["invocation_id"], "a\"}\n{\u{1b}[31m");
    }
}
