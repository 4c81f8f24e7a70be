//! The pages of builds.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    extract::{Path, Query, State},
    response::{IntoResponse as _, Redirect, Response},
};
use http::StatusCode;
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    chart::bar,
    format,
    layout::table,
    links, misses,
    site::{App, html, not_recorded, now_ms},
};
use crate::builds::{Build, BuildHead, RecentBuilds, Tally};

/// The number of builds on a page.
const PAGE: usize = 50;
/// The number of misses on a page.
const MISSES: usize = 100;
/// The number of targets and mnemonics in a table. The JSON has all.
const TOP: usize = 15;
/// The number of recent builds among which those of the same command are searched.
const SEARCHED: usize = 200;
/// The time after which an open page reads a build in progress again.
const REREAD: Duration = Duration::from_secs(2);
/// The time after which it reads a build again that has had no call for a while, such as during a long action.
const REREAD_QUIET: Duration = Duration::from_secs(10);
/// The time since its last call after which a build is not read again.
const QUIET: Duration = Duration::from_mins(10);

/// The page that is requested, from its first row.
#[derive(Deserialize)]
pub(super) struct FirstRow {
    from: Option<usize>,
}

/// The text that is searched.
#[derive(Deserialize)]
pub(super) struct SearchText {
    q: String,
}

/// Answers with the recent builds.
pub(super) async fn list(State(app): State<Arc<App>>, Query(page): Query<FirstRow>) -> Response {
    let from = page.from.unwrap_or(0);
    let recent = app.builds().map(|builds| builds.recent(from, PAGE));
    let recent = recent.unwrap_or_default();
    let content = html! {
        h1 { "Builds" }
        (search())
        @if recent.builds.is_empty() {
            p.empty { "No build is recorded" @if from > 0 { " on this page" } ". Bazel needs no settings to be recorded." }
        } @else {
            (heads("Recent builds", &recent.builds))
        }
        (links::pager("/builds?from=", from, PAGE, recent.total))
        (outside(&recent))
    };
    html(StatusCode::OK, "Builds", &content)
}

/// Renders the form that finds a build, a target or an action.
fn search() -> Markup {
    html! {
        form.search action="/find" role="search" {
            label for="q" { "Find a target, an action or a build" }
            input #q name="q" type="search" required placeholder="//pkg:target, digest or invocation id";
            button type="submit" { "Find" }
        }
    }
}

/// Redirects to the page of the searched build, target or action.
pub(super) async fn find(Query(SearchText { q }): Query<SearchText>) -> Response {
    let text = q.trim();
    let hash = text.split(['/', '-']).next().unwrap_or_default();
    let is_digest = hash.len() >= 32 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    let path = if is_digest {
        links::action(text)
    } else if text.starts_with(['/', '@']) {
        links::target(text)
    } else {
        links::build(text)
    };
    Redirect::to(&path).into_response()
}

fn outside(recent: &RecentBuilds) -> Markup {
    let unnamed = recent.without_build.lookups();
    html! {
        @if unnamed > 0 {
            p.muted { (format::counted(unnamed, "lookup")) " named no build." }
        }
        @if recent.unrecorded + recent.unexplained > 0 {
            p.muted {
                "Dropped because too many arrived at once: " (format::counted(recent.unrecorded, "call"))
                " not recorded, " (format::counted(recent.unexplained, "miss")) " not explained."
            }
        }
    }
}

/// Renders builds as a table.
pub(super) fn heads(label: &str, heads: &[BuildHead]) -> Markup {
    table(
        label,
        &["Build", "Client"],
        &["Started", "Took", "Hit rate", "Hits", "Misses", "Saved"],
        &html! {
            @for head in heads {
                tr {
                    th scope="row" { a href=(links::build(&head.id)) { code { (short(&head.id)) } } }
                    td.text { (client(head)) }
                    td { (format::time(head.started_ms)) }
                    td { (milliseconds(head.last_call_ms.saturating_sub(head.started_ms))) }
                    td.share { (rate(&head.total)) }
                    td { (format::count(head.total.hits)) }
                    td { (format::count(missed(&head.total))) }
                    td { (milliseconds(head.total.saved_ms)) }
                }
            }
        },
    )
}

/// Answers with one build.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(page): Query<FirstRow>,
) -> Response {
    let Some(build) = app.build(&id).await else {
        return not_recorded("Build", &format!("No build {id} is recorded."));
    };
    let from = page.from.unwrap_or(0);
    let id = &build.head.id;
    let parts = parts(&app, &build, from);
    let content = html! {
        h1 { "Build " code { (id) } }
        div data-reread=[reread_ms(&build.head, now_ms())] {
            @for (id, part) in parts { div id=(id) { (part) } }
        }
        p { a href=(links::api(&links::build(id))) { "This page as JSON" } }
    };
    html(StatusCode::OK, "Build", &content)
}

/// Returns the time after which an open page reads the build again, in milliseconds. `None` once it is not expected to
/// change.
fn reread_ms(head: &BuildHead, now: u64) -> Option<u128> {
    let quiet = Duration::from_millis(now.abs_diff(head.last_call_ms));
    let interval = if head.is_in_progress(now) {
        REREAD
    } else {
        REREAD_QUIET
    };
    (quiet < QUIET).then_some(interval.as_millis())
}

/// Renders the parts of the page of a build, which change while it is in progress.
fn parts(app: &App, build: &Build, from: usize) -> [(&'static str, Markup); 4] {
    [
        ("state", state(&build.head, now_ms())),
        ("totals", totals(&build.head.total)),
        (
            "tops",
            html! { (correlated(app, &build.head)) (tops(build)) },
        ),
        ("misses", miss_rows(build, from)),
    ]
}

fn state(head: &BuildHead, now: u64) -> Markup {
    html! {
        p.state {
            @if head.is_in_progress(now) { span.pill.good { "In progress" } }
            span.muted {
                (client(head)) ", started " (format::time(head.started_ms))
                ", last call " (format::time(head.last_call_ms))
            }
        }
    }
}

fn miss_rows(build: &Build, from: usize) -> Markup {
    let pages = format!("{}?from=", links::build(&build.head.id));
    html! {
        h2 { "Misses" }
        (misses::of_build(build, from, MISSES))
        (links::pager(&pages, from, MISSES, build.misses.len()))
        (left_out(build))
    }
}

/// Renders totals as cards.
pub(super) fn totals(total: &Tally) -> Markup {
    let card = |name: &str, value: String, about: String| {
        html! { div.card { h2 { (name) } p.value { (value) } p.muted { (about) } } }
    };
    let hit_rate = share(total).map_or("–".to_owned(), format::percent);
    html! {
        div.cards {
            (card("Hit rate", hit_rate, format!("{} of {}",
                format::count(total.hits), format::counted(total.lookups(), "lookup"))))
            (card("Misses", format::count(missed(total)),
                format!("{} of them incomplete", format::count(total.incomplete))))
            (card("Saved", milliseconds(total.saved_ms),
                format!("of execution, {} of outputs", format::bytes(total.hit_bytes))))
            (card("Executed", milliseconds(total.executed_ms),
                format!("{}, {} stored", format::counted(total.stored, "result"), format::bytes(total.stored_bytes))))
        }
    }
}

fn correlated(app: &App, head: &BuildHead) -> Markup {
    let recent = app.builds().map(|builds| builds.recent(0, SEARCHED));
    let mut builds = recent.unwrap_or_default().builds;
    builds.retain(|other| other.correlated_id == head.correlated_id && other.id != head.id);
    html! {
        @if !head.correlated_id.is_empty() && !builds.is_empty() {
            h2 { "Builds of the same command" }
            p.muted { "They share the correlated invocations id " code { (head.correlated_id) } "." }
            (heads("Builds of the same command", &builds))
        }
    }
}

fn tops(build: &Build) -> Markup {
    html! {
        (top("Most-missed targets", &build.targets, true, missed))
        (top("Slowest targets", &build.targets, true, |tally| tally.executed_ms))
        (top("Mnemonics", &build.mnemonics, false, |tally| tally.lookups() + tally.stored))
    }
}

/// Renders the entries with the highest ranks above 0.
fn top(
    label: &str,
    entries: &BTreeMap<String, Tally>,
    are_targets: bool,
    rank: fn(&Tally) -> u64,
) -> Markup {
    let mut ranked: Vec<_> = entries
        .iter()
        .filter(|(_, tally)| rank(tally) > 0)
        .collect();
    ranked.sort_by_key(|(_, tally)| Reverse(rank(tally)));
    let (all, name) = (
        ranked.len(),
        if are_targets { "Target" } else { "Mnemonic" },
    );
    ranked.truncate(TOP);
    let rows = html! {
        @for (name, tally) in ranked {
            tr {
                th scope="row" {
                    @if are_targets { a href=(links::target(name)) { (name) } } @else { (name) }
                }
                td.share { (rate(tally)) }
                td { (format::count(tally.hits)) }
                td { (format::count(missed(tally))) }
                td { (milliseconds(tally.executed_ms)) }
                td { (milliseconds(tally.slowest_ms)) }
                td { (milliseconds(tally.saved_ms)) }
            }
        }
    };
    html! {
        @if all > 0 {
            h2 { (label) }
            (table(label, &[name], &["Hit rate", "Hits", "Misses", "Executed", "Longest", "Saved"], &rows))
            @if all > TOP { p.muted { (TOP) " of " (format::count(all as u64)) "." } }
        }
    }
}

fn left_out(build: &Build) -> Markup {
    let left_out = &build.head.left_out;
    let kinds = [
        ("call", "for further targets", left_out.targets),
        ("call", "for further mnemonics", left_out.mnemonics),
        ("further miss", "", left_out.misses),
    ];
    html! {
        @for (noun, of, number) in kinds {
            @if number > 0 {
                p.muted { "Counted in the totals only: " (format::counted(number, noun)) " " (of) }
            }
        }
    }
}

/// Renders the share of hits as a bar and a number.
pub(super) fn rate(tally: &Tally) -> Markup {
    html! {
        @if let Some(rate) = share(tally) {
            (bar(rate, "hits")) span { (format::percent(rate)) }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
fn share(tally: &Tally) -> Option<f64> {
    let all = tally.hits + missed(tally);
    (all > 0).then(|| tally.hits as f64 / all as f64)
}

const fn missed(tally: &Tally) -> u64 {
    tally.misses + tally.incomplete
}

/// Renders a duration; nothing if it is unknown or zero.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn milliseconds(ms: u64) -> String {
    if ms == 0 {
        return "–".to_owned();
    }
    format::seconds(ms as f64 / 1000.0)
}

/// Returns the name of the client, and its version if it named one.
fn client(head: &BuildHead) -> String {
    let client = format!("{} {}", head.tool, head.tool_version);
    client.trim().to_owned()
}

/// Returns the first part of an id, enough to distinguish builds.
fn short(id: &str) -> &str {
    let end = id.floor_char_boundary(13);
    id.get(..end).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of everything that a client names.
    const NAME: &str = "<b onclick='x'>\"&";

    #[test]
    fn names_of_clients_are_escaped() {
        let tally = Tally {
            misses: 1,
            executed_ms: 1,
            ..Tally::default()
        };
        let head = BuildHead {
            id: NAME.to_owned(),
            tool: NAME.to_owned(),
            tool_version: NAME.to_owned(),
            ..BuildHead::default()
        };
        let build = Build {
            head: head.clone(),
            targets: BTreeMap::from([(NAME.to_owned(), tally)]),
            mnemonics: BTreeMap::from([(NAME.to_owned(), tally)]),
            misses: Vec::new(),
        };
        let page = html! { (tops(&build)) (heads(NAME, &[head])) }.into_string();
        assert!(page.contains("&lt;b onclick='x'&gt;&quot;&amp;"), "{page}");
        assert!(!page.contains("<b"), "{page}");
    }

    #[test]
    fn tables_of_targets_have_the_highest_first_and_an_end() {
        let tally = |misses| Tally {
            misses,
            ..Tally::default()
        };
        let targets = (0..1000).map(|n| (format!("//t:{n}"), tally(n)));
        let page = top("Most", &targets.collect(), true, missed).into_string();
        assert_eq!(page.matches("<tr>").count(), TOP + 1);
        let at = |target: &str| page.find(target).unwrap_or(usize::MAX);
        assert!(at("//t:999<") < at("//t:998<") && at("//t:985<") < page.len());
        assert!(!page.contains("//t:984<"), "{page}");
        assert!(page.contains("15 of 999."), "{page}");
    }
}
