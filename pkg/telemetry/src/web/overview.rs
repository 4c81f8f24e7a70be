//! The overview: the state of the server and its numbers.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use http::StatusCode;
use maud::{Markup, html};
use serde::Serialize;

use super::{
    actions,
    builds::heads,
    chart::{Line, bar, chart},
    format,
    history::Rate,
    layout::table,
    peers,
    site::{App, html},
    snapshot::{Lookups, MethodCalls, Snapshot},
    storage,
};
use crate::builds::BuildHead;

/// A part of the page that changes.
#[derive(Serialize)]
pub(super) struct Fragment {
    /// The id of the element that holds it.
    id: &'static str,
    html: String,
}

/// Answers with the overview.
pub(super) async fn page(State(app): State<Arc<App>>) -> Response {
    let rates = app.pages.history.lock().rates();
    let parts = parts(&app.snapshot(), &rates);
    let content = html! {
        h1 { "Overview" }
        div data-live="/events" {
            @for (id, part) in parts { div id=(id) { (part) } }
        }
        @if app.site.peers.is_some() {
            h2 { "Cluster" }
            p { a href=(peers::PATH) { "Nodes and their load" } }
        }
    };
    html(StatusCode::OK, "Overview", &content)
}

/// Renders the parts of the overview that change.
pub(super) fn fragments(snapshot: &Snapshot, rates: &[Rate]) -> Vec<Fragment> {
    let parts = parts(snapshot, rates).into_iter();
    let fragment = |(id, part): (_, Markup)| Fragment {
        id,
        html: part.into_string(),
    };
    parts.map(fragment).collect()
}

fn parts(snapshot: &Snapshot, rates: &[Rate]) -> [(&'static str, Markup); 8] {
    [
        ("state", state(snapshot)),
        ("now", now(snapshot, rates)),
        ("charts", charts(rates)),
        ("actions", actions::summary(snapshot.actions)),
        ("builds", recent(&snapshot.builds)),
        ("lookups", lookups(&snapshot.traffic.lookups)),
        (
            "storage",
            storage::section(&snapshot.status.components, snapshot.at_ms),
        ),
        ("methods", methods(&snapshot.traffic.methods)),
    ]
}

fn state(snapshot: &Snapshot) -> Markup {
    let status = &snapshot.status;
    let (ready, class) = if status.readiness.ready {
        ("Ready", "good")
    } else {
        ("Not ready", "bad")
    };
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let uptime = format::seconds(status.uptime_seconds as f64);
    html! {
        p.state {
            span class={ "pill " (class) } { (ready) }
            @for part in &status.readiness.parts {
                @if !part.ok { span.pill.bad { (part.name) ": " (part.state) } }
            }
            span.muted { "gorego " (status.version) ", running for " (uptime) }
        }
    }
}

fn now(snapshot: &Snapshot, rates: &[Rate]) -> Markup {
    let traffic = &snapshot.traffic;
    let (hits, lookups) = traffic.client_lookups();
    let (read, written) = traffic.client_bytes();
    let all = Lookups {
        hits,
        misses: lookups.saturating_sub(hits),
        ..Lookups::default()
    };
    let latest = rates.last();
    let per_second = |value: fn(&Rate) -> f64| latest.map_or(0.0, value);
    html! {
        div.cards {
            (card("Hit rate", &all.hit_rate().map_or("–".to_owned(), format::percent),
                &format!("{} of {}", format::count(hits), format::counted(lookups, "lookup"))))
            (card("Sent", &format!("{}/s", format::size(per_second(|rate| rate.read))),
                &format!("{} since the start", format::bytes(read))))
            (card("Received", &format!("{}/s", format::size(per_second(|rate| rate.written))),
                &format!("{} since the start", format::bytes(written))))
            (card("Calls", &format!("{}/s", format::rate(per_second(|rate| rate.calls))),
                &format!("{} in progress", format::count(traffic.in_flight))))
        }
    }
}

fn card(name: &str, value: &str, about: &str) -> Markup {
    html! {
        div.card {
            h2 { (name) }
            p.value { (value) }
            p.muted { (about) }
        }
    }
}

fn charts(rates: &[Rate]) -> Markup {
    let points = |value: fn(&Rate) -> Option<f64>| -> Vec<_> {
        rates.iter().map(|rate| (rate.age, value(rate))).collect()
    };
    let line = |class, value| Line {
        class,
        points: points(value),
    };
    let highest = |value: fn(&Rate) -> f64| rates.iter().map(value).fold(0.0, f64::max);
    let bytes = highest(|rate| rate.read.max(rate.written));
    let calls = highest(|rate| rate.calls);
    let bytes_text = format!("{}/s", format::size(bytes));
    let calls_text = format!("{}/s", format::rate(calls));
    html! {
        div.charts {
            (figure("Hit rate", "100 %", &html! {}, 1.0, &[line("hits", |rate| rate.hit_rate)]))
            (figure("Throughput", &bytes_text,
                &html! { span.key.read { "sent" } span.key.written { "received" } }, bytes,
                &[line("read", |rate| Some(rate.read)), line("written", |rate| Some(rate.written))]))
            (figure("Calls", &calls_text, &html! {}, calls, &[line("calls", |rate| Some(rate.calls))]))
        }
    }
}

fn figure(name: &str, top: &str, keys: &Markup, highest: f64, lines: &[Line]) -> Markup {
    let label = format!("{name} over the last 5 minutes, at most {top}");
    html! {
        figure.card {
            figcaption { h2 { (name) } (keys) span.top { (top) } }
            (chart(&label, highest, lines))
            div.axis { span { "5 min ago" } span { "now" } }
        }
    }
}

fn recent(builds: &[BuildHead]) -> Markup {
    html! {
        @if !builds.is_empty() {
            h2 { "Current and recent builds" }
            (heads("Current and recent builds", builds))
            p { a href="/builds" { "All builds" } }
        }
    }
}

fn lookups(lookups: &[Lookups]) -> Markup {
    let used = lookups
        .iter()
        .filter(|found| found.answered() + found.errors > 0);
    let rows: Vec<_> = used.collect();
    html! {
        h2 { "Hits by tier" }
        @if rows.is_empty() {
            p.empty { "No client has looked anything up since the start." }
        } @else {
            (table("Hits by tier",
                &["Tier", "Kind"], &["Hit rate", "Hits", "Misses", "Incomplete", "In outages", "Errors"],
                &html! { @for found in rows { (row(found)) } }))
        }
    }
}

fn row(found: &Lookups) -> Markup {
    let tier = match found.tier.as_ref() {
        "client" => "Clients",
        "local" => "Local tier",
        "backing" => "Backing cache",
        other => other,
    };
    let kind = if found.kind == "result" {
        "action results"
    } else {
        "blobs"
    };
    html! {
        tr {
            th scope="row" { (tier) }
            td.text { (kind) }
            td.share {
                @if let Some(rate) = found.hit_rate() {
                    (bar(rate, "hits")) span { (format::percent(rate)) }
                }
            }
            @for number in [found.hits, found.misses, found.incomplete, found.outage, found.errors] {
                td { (format::count(number)) }
            }
        }
    }
}

fn methods(methods: &[MethodCalls]) -> Markup {
    let time = |seconds: Option<f64>| seconds.map_or("–".to_owned(), format::seconds);
    html! {
        h2 { "Requests" }
        @if methods.is_empty() {
            p.empty { "No call has ended since the start." }
        } @else {
            (table("Requests", &["Method"], &["Calls", "Errors", "Median", "99th percentile"],
                &html! {
                    @for method in methods {
                        tr {
                            th scope="row" { code { (method.method) } }
                            td { (format::count(method.calls)) }
                            td { (format::count(method.errors)) }
                            td { (time(method.p50_seconds)) }
                            td { (time(method.p99_seconds)) }
                        }
                    }
                }))
        }
    }
}
