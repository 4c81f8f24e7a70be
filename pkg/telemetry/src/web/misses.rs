//! The tables of misses, and the explanation of one.

use maud::{Markup, html};

use super::{builds::milliseconds, format, layout::table, links};
use crate::builds::{Build, Explanation, LookupOutcome, Miss, TargetMiss};

/// Renders a page of the misses of a build.
pub(super) fn of_build(build: &Build, from: usize, page: usize) -> Markup {
    let shown = build.misses.iter().skip(from).take(page);
    html! {
        @if build.misses.is_empty() {
            p.empty { "Every recorded lookup was a hit." }
        } @else {
            (table("Misses", &["Action", "Mnemonic", "Target", "Why"], &["Executed"], &html! {
                @for miss in shown {
                    tr {
                        th scope="row" { (link(miss, &build.head.id)) }
                        td.text { (miss.mnemonic) }
                        td.text {
                            // A client may name none.
                            @if !miss.target.is_empty() { a href=(links::target(&miss.target)) { (miss.target) } }
                        }
                        td.wrap { (why(miss)) }
                        td { (milliseconds(miss.executed_ms.unwrap_or(0))) }
                    }
                }
            }))
        }
    }
}

/// Renders the misses of a target.
pub(super) fn of_target(misses: &[TargetMiss]) -> Markup {
    table(
        "Misses",
        &["Action", "Build", "Mnemonic", "Time", "Why"],
        &["Executed"],
        &html! {
            @for TargetMiss { build, miss } in misses {
                tr {
                    th scope="row" { (link(miss, build)) }
                    td.text { a href=(links::build(build)) { code { (cut(build)) } } }
                    td.text { (miss.mnemonic) }
                    td.text { (format::time(miss.at_ms)) }
                    td.wrap { (why(miss)) }
                    td { (milliseconds(miss.executed_ms.unwrap_or(0))) }
                }
            }
        },
    )
}

fn link(miss: &Miss, build: &str) -> Markup {
    html! { a href=(links::miss(&miss.action, build)) { code { (cut(&miss.action)) } } }
}

fn why(miss: &Miss) -> Markup {
    html! {
        @match (&miss.explanation, miss.outcome) {
            (Some(explanation), _) => (explanation.sentence),
            (None, LookupOutcome::Incomplete) => span.muted { "The result is incomplete." },
            (None, LookupOutcome::Error) => span.muted { "The lookup failed." },
            (None, _) if miss.stored_ms.is_some() => span.muted { "The page of the action explains it." },
            (None, _) => span.muted { "Not explained yet: the client has not stored a result." },
        }
    }
}

fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(12);
    text.get(..end).unwrap_or(text)
}

/// Renders an explanation with the differences from the nearest action.
pub(super) fn explanation(explanation: &Explanation) -> Markup {
    html! {
        div.card {
            p.lead { (explanation.sentence) }
            p.muted { (explanation.evidence) }
            @if let Some(comparison) = &explanation.comparison {
                p {
                    "Nearest known action: "
                    @for nearest in &comparison.nearest {
                        a href=(links::action(nearest)) { code { (cut(nearest)) } } " "
                    }
                }
            }
        }
        @if let Some(comparison) = &explanation.comparison {
            @if !comparison.differences.is_empty() {
                h2 { "Differences" }
                (table("Differences", &["Part", "Name", "Nearest action", "This action"], &[], &html! {
                    @for it in &comparison.differences {
                        tr {
                            th scope="row" { (it.aspect.name()) }
                            td.wrap { code { (it.name) } }
                            td.wrap { (value(it.before.as_deref())) }
                            td.wrap { (value(it.after.as_deref())) }
                        }
                    }
                }))
                @if comparison.left_out > 0 {
                    p.muted { "Not shown: " (format::counted(comparison.left_out as u64, "further difference")) "." }
                }
            }
        }
    }
}

fn value(text: Option<&str>) -> Markup {
    html! {
        @match text {
            Some(text) => code { (text) },
            None => span.muted { "none" },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_without_target_or_explanation_has_no_empty_link_and_the_reason() {
        let miss = Miss {
            action: "9f86/142".to_owned(),
            ..Miss::default()
        };
        let stored = Miss {
            stored_ms: Some(1),
            ..miss.clone()
        };
        let build = Build {
            misses: vec![miss, stored],
            ..Build::default()
        };
        let page = of_build(&build, 0, 9).into_string();
        assert!(!page.contains("/targets"), "{page}");
        assert_eq!(page.matches("has not stored a result").count(), 1);
        assert_eq!(page.matches("page of the action explains").count(), 1);
    }
}
