//! The page of the queued, running and recent actions, and its JSON.

use std::{fmt, sync::Arc};

use axum::{extract::State, response::Response};
use futures::future::BoxFuture;
use http::StatusCode;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::{
    builds::milliseconds,
    format,
    layout::table,
    links,
    site::{App, html, json, not_recorded, plain},
};
use crate::user_info;

/// The path of the page.
pub(super) const PATH: &str = "/actions";
/// The time after which an open page reads the actions again, in milliseconds.
const REREAD_MS: u32 = 2000;
/// The phases of actions, in order.
const PHASES: [&str; 6] = ["queue", "fetch", "stage", "run", "collect", "publish"];

/// The source of the actions that are executed. Its functions must not block.
pub struct ActionSource {
    /// Returns the numbers of queued and running actions.
    pub totals: Box<dyn Fn() -> ActionTotals + Send + Sync>,
    /// Returns the actions.
    pub list: Box<dyn Fn() -> BoxFuture<'static, ActionLists> + Send + Sync>,
}

impl fmt::Debug for ActionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActionSource").finish_non_exhaustive()
    }
}

/// The numbers of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionTotals {
    /// The actions that wait for a worker.
    pub queued: u64,
    /// The attempts that occupy a worker of this node, including those of other nodes.
    pub running: u64,
    /// The attempts of this node's actions that other nodes run.
    #[serde(default)]
    pub elsewhere: u64,
}

/// The actions of one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ActionLists {
    /// The numbers of all actions.
    pub totals: ActionTotals,
    /// The oldest queued and running actions, the oldest first.
    pub current: Vec<ExecutedAction>,
    /// The actions that ended last, the newest first.
    pub recent: Vec<ExecutedAction>,
}

/// An action that is queued, runs or has ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExecutedAction {
    /// The name of its operation, as lists show it.
    pub operation: String,
    /// The digest, as `hash/size`.
    pub action: String,
    /// The instance.
    pub instance: String,
    /// The target, as the client names it.
    pub target: String,
    /// The mnemonic, as the client names it.
    pub mnemonic: String,
    /// The build.
    pub build: String,
    /// The current phase, or the outcome.
    pub state: &'static str,
    /// The node that runs the action, or ran it last; empty if none did.
    pub node: String,
    /// The exit code of the command, if it has ended.
    pub exit_code: Option<i32>,
    /// The time of the submission, in milliseconds since the Unix epoch.
    pub submitted_ms: u64,
    /// The time from the submission to the end, or to this moment.
    pub took_ms: u64,
    /// The phases of the last attempt so far, after the time in the queue.
    pub phases: Vec<ActionPhase>,
    /// The attempts so far.
    pub attempts: u32,
    /// The number of operations that share the execution.
    pub operations: u64,
    /// The processor time that the running command has used.
    pub processor_ms: Option<u64>,
    /// The resident memory of the running command.
    pub resident_bytes: Option<u64>,
}

/// A phase of an action.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ActionPhase {
    /// The name.
    pub phase: &'static str,
    /// The time that it took, or has taken.
    pub took_ms: u64,
}

impl ExecutedAction {
    /// Removes secrets from the names that clients chose.
    fn redact(&mut self) {
        for name in [
            &mut self.operation,
            &mut self.instance,
            &mut self.target,
            &mut self.mnemonic,
            &mut self.build,
        ] {
            *name = user_info::redacted(name).into_owned();
        }
    }

    fn phase(&self, name: &str) -> Option<u64> {
        let phase = self.phases.iter().find(|phase| phase.phase == name);
        phase.map(|phase| phase.took_ms)
    }
}

/// The optional parts of the tables.
#[derive(Clone, Copy)]
struct Shown {
    /// Links to pages of actions.
    pages: bool,
    /// The nodes of a cluster.
    nodes: bool,
}

impl Shown {
    /// Returns the headers of the columns of text; `state` is the last of them.
    fn texts(self, state: &'static str) -> Vec<&'static str> {
        let node = self.nodes.then_some("Node");
        ["Action", "Mnemonic"]
            .into_iter()
            .chain(node)
            .chain([state])
            .collect()
    }
}

/// Returns the actions, without secrets in their names; `None` if none are executed.
async fn lists(app: &App) -> Option<ActionLists> {
    let mut lists = (app.site.actions.as_ref()?.list)().await;
    let actions = lists.current.iter_mut().chain(&mut lists.recent);
    actions.for_each(ExecutedAction::redact);
    Some(lists)
}

/// Answers with the JSON.
pub(super) async fn api(State(app): State<Arc<App>>) -> Response {
    match lists(&app).await {
        Some(lists) => json(&lists),
        None => plain(StatusCode::NOT_FOUND, "no actions are executed here\n"),
    }
}

/// Answers with the page.
pub(super) async fn page(State(app): State<Arc<App>>) -> Response {
    let Some(lists) = lists(&app).await else {
        return not_recorded("Actions", "No actions are executed here.");
    };
    let has = Shown {
        pages: app.builds().is_some(),
        nodes: app.site.peers.is_some(),
    };
    let content = html! {
        h1 { "Actions" }
        div data-reread=(REREAD_MS) {
            div #current { (current(&lists, has)) }
            div #recent { (recent(&lists.recent, has)) }
        }
        p { a href=(links::api(PATH)) { "This page as JSON" } }
    };
    html(StatusCode::OK, "Actions", &content)
}

/// Renders the part of the overview.
pub(super) fn summary(totals: Option<ActionTotals>) -> Markup {
    html! {
        @if let Some(totals) = totals {
            h2 { "Actions" }
            p { (numbers(totals)) " " a href=(PATH) { "Queued, running and recent actions" } }
        }
    }
}

fn numbers(totals: ActionTotals) -> String {
    let running = format::counted(totals.running, "action");
    let queued = format::count(totals.queued);
    if totals.elsewhere == 0 {
        return format!("{running} running, {queued} queued.");
    }
    let elsewhere = format::count(totals.elsewhere);
    format!("{running} running here, {elsewhere} on other nodes, {queued} queued.")
}

fn current(lists: &ActionLists, has: Shown) -> Markup {
    let rows = html! {
        @for action in &lists.current {
            tr {
                (name(action, has))
                td.text { (action.state) }
                td { (milliseconds(action.took_ms)) }
                td { (action.phases.last().map_or_else(|| "–".to_owned(), |phase| milliseconds(phase.took_ms))) }
                td { (action.processor_ms.map_or_else(|| "–".to_owned(), milliseconds)) }
                td { (action.resident_bytes.map_or_else(|| "–".to_owned(), format::bytes)) }
                td { (action.attempts) }
                td { (action.operations) }
            }
        }
    };
    let numeric = [
        "Age",
        "In this phase",
        "CPU",
        "Memory",
        "Attempts",
        "Clients",
    ];
    html! {
        p.state { (numbers(lists.totals)) }
        @if !lists.current.is_empty() {
            h2 { "Queued and running" }
            (table("Queued and running", &has.texts("Phase"), &numeric, &rows))
        }
    }
}

fn recent(actions: &[ExecutedAction], has: Shown) -> Markup {
    let rows = html! {
        @for action in actions {
            tr {
                (name(action, has))
                td.text { (outcome(action)) }
                td { (format::time(action.submitted_ms)) }
                td { (milliseconds(action.took_ms)) }
                @for phase in PHASES { td { (action.phase(phase).map_or_else(|| "–".to_owned(), milliseconds)) } }
            }
        }
    };
    let numeric = [
        "Submitted",
        "Took",
        "Queue",
        "Fetch",
        "Stage",
        "Run",
        "Collect",
        "Publish",
    ];
    html! {
        h2 { "Recent" }
        @if actions.is_empty() {
            p.empty { "No action has ended since the start." }
        } @else {
            (table("Recent", &has.texts("Outcome"), &numeric, &rows))
        }
    }
}

/// Renders the cells that name an action.
fn name(action: &ExecutedAction, has: Shown) -> Markup {
    let hash = action.action.get(..12).unwrap_or(&action.action);
    let text = html! {
        @if action.target.is_empty() { code { (hash) } } @else { (action.target) }
    };
    html! {
        th scope="row" {
            @if has.pages { a href=(links::action(&action.action)) { (text) } } @else { (text) }
        }
        td.text { (action.mnemonic) }
        @if has.nodes { td.text { (action.node) } }
    }
}

fn outcome(action: &ExecutedAction) -> String {
    match action.exit_code {
        Some(code) if code != 0 => format!("{} (exit code {code})", action.state),
        _ => action.state.replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clients_are_escaped_and_passwords_in_them_removed() {
        let mut action = ExecutedAction {
            target: "https://user:secret@host/<b>".to_owned(),
            mnemonic: "<i>".to_owned(),
            action: "0123456789abcdef/7".to_owned(),
            state: "failed",
            exit_code: Some(3),
            phases: vec![ActionPhase {
                phase: "run",
                took_ms: 1500,
            }],
            ..ExecutedAction::default()
        };
        action.redact();
        let lists = ActionLists {
            current: vec![action.clone()],
            ..ActionLists::default()
        };
        let has = Shown {
            pages: true,
            nodes: true,
        };
        for page in [current(&lists, has), recent(&[action], has)] {
            let page = page.into_string();
            assert!(!page.contains("secret") && !page.contains("<b>"), "{page}");
            assert!(!page.contains("<i>"), "{page}");
            assert!(
                page.contains("href=\"/actions/0123456789abcdef-7\""),
                "{page}"
            );
        }
    }
}
