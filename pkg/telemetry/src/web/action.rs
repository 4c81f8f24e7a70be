//! The pages of one action and of one target.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use http::StatusCode;
use maud::{Markup, html};

use super::{
    api::{MissQuery, TargetQuery},
    builds::totals,
    format,
    layout::table,
    links, misses,
    site::{App, html, not_recorded},
};
use crate::builds::{ActionView, Entry, Variable};

/// Answers with the misses of a target.
pub(super) async fn target(
    State(app): State<Arc<App>>,
    Query(TargetQuery { label }): Query<TargetQuery>,
) -> Response {
    let Some(target) = app.target(&label).await else {
        let text = format!("No recorded build has the target {label}.");
        return not_recorded("Target", &text);
    };
    let content = html! {
        h1 { "Target " code { (target.target) } }
        (totals(&target.total))
        h2 { "Last misses" }
        @if target.misses.is_empty() {
            p.empty { "No lookup of this target missed in the recorded builds." }
        } @else {
            (misses::of_target(&target.misses))
        }
    };
    html(StatusCode::OK, "Target", &content)
}

/// Answers with one action.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    Path(digest): Path<String>,
    Query(query): Query<MissQuery>,
) -> Response {
    let Some(action) = app.action(&digest, &query).await else {
        let text = format!(
            "{digest} is neither a digest (hash/size or hash-size) nor the hash of a recorded miss."
        );
        return not_recorded("Action", &text);
    };
    let from = query.inputs_from.unwrap_or(0);
    let content = html! {
        h1 { "Action " code { (action.action) } }
        (last_miss(&action))
        @match &action.explanation {
            Some(explanation) => (misses::explanation(explanation)),
            None => p.empty { "No miss of this action is recorded." },
        }
        @match &action.unreadable {
            Some(why) => { h2 { "Command" } p.empty { "The command cannot be shown: " (why) } }
            None => { (command(&action)) (self::inputs(&action, from)) }
        }
        (outputs(&action))
        p { a href=(links::api(&url(&action))) { "This page as JSON" } }
    };
    html(StatusCode::OK, "Action", &content)
}

/// Returns the path of this page, with the build of the miss if there is one.
fn url(action: &ActionView) -> String {
    match &action.last_miss {
        Some(last) => links::miss(&action.action, &last.build),
        None => links::action(&action.action),
    }
}

fn last_miss(action: &ActionView) -> Markup {
    html! {
        @if let Some(last) = &action.last_miss {
            p.state {
                // A client may name neither.
                @if !last.miss.mnemonic.is_empty() { span.pill { (last.miss.mnemonic) } }
                @if !last.miss.target.is_empty() {
                    a href=(links::target(&last.miss.target)) { (last.miss.target) }
                }
                span.muted { "missed " (format::time(last.miss.at_ms)) " in" }
                a href=(links::build(&last.build)) { "this build" }
            }
        }
    }
}

fn command(action: &ActionView) -> Markup {
    html! {
        h2 { "Command" }
        ol.arguments tabindex="0" aria-label="Arguments" {
            @for argument in &action.arguments { li { code { (argument) } } }
        }
        dl {
            @if !action.working_directory.is_empty() {
                dt { "Working directory" } dd { code { (action.working_directory) } }
            }
            @if !action.timeout.is_empty() { dt { "Time limit" } dd { (action.timeout) } }
            @if action.do_not_cache { dt { "Caching" } dd { "Results must not be cached." } }
        }
        (variables("Environment", &action.environment))
        (variables("Platform", &action.platform))
        @if action.left_out > 0 {
            p.muted { "Not shown: " (format::counted(action.left_out as u64, "further value")) "." }
        }
    }
}

fn variables(label: &str, variables: &[Variable]) -> Markup {
    html! {
        @if !variables.is_empty() {
            h2 { (label) }
            (table(label, &["Name", "Value"], &[], &html! {
                @for variable in variables {
                    tr {
                        th scope="row" { code { (variable.name) } }
                        td.wrap { code { (variable.value) } }
                    }
                }
            }))
        }
    }
}

fn inputs(action: &ActionView, from: usize) -> Markup {
    let url = url(action);
    let separator = if action.last_miss.is_some() { '&' } else { '?' };
    html! {
        h2 #inputs { "Inputs" }
        @if let Some(root) = &action.input_root { p.muted { "Root: " code { (root) } } }
        @if let Some(why) = &action.inputs_left_out { p.empty { (why) } }
        @if !action.inputs.is_empty() { (entries("Inputs", &action.inputs)) }
        @if from > 0 || action.next_inputs.is_some() {
            nav.pager aria-label="Inputs" {
                @if from > 0 { a href=(url) { "First inputs" } }
                @if let Some(next) = action.next_inputs {
                    a rel="next" href={ (url) (separator) "inputs_from=" (next) "#inputs" } { "Next" }
                }
            }
        }
    }
}

fn outputs(action: &ActionView) -> Markup {
    html! {
        h2 { "Outputs" }
        @match &action.outputs {
            Some(outputs) => {
                @if let Some(code) = action.exit_code {
                    p.muted {
                        "The result is in " (place(action)) " " (instances(action)) ", with exit code " (code) "."
                    }
                }
                @if !outputs.is_empty() { (entries("Outputs", outputs)) }
            }
            None => {
                p.empty {
                    "There is no result of this action in " (place(action)) " " (instances(action)) "."
                    @if action.is_local_only { " The backing cache was not asked." }
                }
                @if !action.inputs.is_empty() {
                    // The client uploaded what an executor needs, and the command failed.
                    p { "To see it run on your machine: " code { "gorego shell --run " (action.action) } }
                }
                @if !action.output_paths.is_empty() {
                    p { "Declared outputs: " @for path in &action.output_paths { code { (path) } " " } }
                }
            }
        }
    }
}

/// Returns the name of the stores that were searched.
const fn place(action: &ActionView) -> &'static str {
    if action.is_local_only {
        "the local tier"
    } else {
        "the cache"
    }
}

/// Describes the instance names that were searched.
fn instances(action: &ActionView) -> String {
    let names: Vec<_> = action
        .instances
        .iter()
        .map(|it| format!("{it:?}"))
        .collect();
    format!("under instance name {}", names.join(" or "))
}

fn entries(label: &str, entries: &[Entry]) -> Markup {
    table(
        label,
        &["Path", "Content"],
        &[],
        &html! {
            @for entry in entries {
                tr {
                    th.wrap scope="row" { code { (entry.path) } }
                    td.wrap { code { (entry.content) } }
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builds::{Miss, TargetMiss};

    #[test]
    fn a_miss_without_target_and_mnemonic_has_no_empty_parts() {
        let action = ActionView {
            last_miss: Some(TargetMiss {
                build: "b".to_owned(),
                miss: Miss::default(),
            }),
            ..ActionView::default()
        };
        let page = last_miss(&action).into_string();
        assert!(page.contains("this build"), "{page}");
        assert!(
            !page.contains("/targets") && !page.contains("pill"),
            "{page}"
        );
    }

    #[test]
    fn an_absent_result_is_claimed_only_of_the_stores_and_names_that_were_searched() {
        let mut action = ActionView {
            instances: vec!["a".to_owned(), String::new()],
            ..ActionView::default()
        };
        let page = outputs(&action).into_string();
        let expected = "no result of this action in the cache under instance name &quot;a&quot; or &quot;&quot;.";
        assert!(page.contains(expected), "{page}");
        action.is_local_only = true;
        let page = outputs(&action).into_string();
        assert!(page.contains("in the local tier under"), "{page}");
        assert!(page.contains("The backing cache was not asked."), "{page}");
        assert!(!page.contains("gorego shell"), "{page}");
        action.inputs.push(Entry {
            path: "file".to_owned(),
            content: "def/2".to_owned(),
        });
        let page = outputs(&action).into_string();
        assert!(page.contains("gorego shell --run"), "{page}");
    }
}
