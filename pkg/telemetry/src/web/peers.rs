//! The page of the nodes of the cluster, and its JSON.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use http::StatusCode;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::{
    format,
    layout::table,
    links,
    site::{App, html, json, not_recorded, plain},
};

/// The path of the page.
pub(super) const PATH: &str = "/peers";
/// The time after which an open page reads the nodes again, in milliseconds.
const REREAD_MS: u32 = 2000;

/// The function that returns the nodes. It must not block.
pub type PeerSource = Box<dyn Fn() -> PeerList + Send + Sync>;

/// The nodes of a cluster, as one of them knows them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerList {
    /// The name of the cluster.
    pub cluster: String,
    /// The name of the node that answers.
    pub node: String,
    /// The nodes, itself included, in the order of their names.
    pub nodes: Vec<PeerNode>,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerNode {
    /// The name.
    pub name: String,
    /// The number of the current run.
    pub generation: u64,
    /// The host and port at which other nodes reach it.
    pub address: String,
    /// `self`, `alive`, `failing` (its last attempts failed), `suspect` (did not answer lately), `draining` (takes no
    /// more work) or `down`.
    pub state: String,
    /// The version of gorego.
    pub version: String,
    /// The actions that it runs at once.
    pub slots: u64,
    /// The actions that it runs; `None` if that is not known now.
    pub running: Option<u64>,
    /// The actions that wait there for a slot; `None` if that is not known now.
    pub queued: Option<u64>,
    /// The actions of the node that answers that it runs now.
    pub taken: u64,
    /// Its actions that the node that answers runs now.
    pub given: u64,
    /// The number of its processors.
    pub cores: u64,
    /// The memory for actions, in bytes.
    pub memory: u64,
    /// The platform properties that its actions may ask for, as `name=value`.
    pub platform: Vec<String>,
    /// The last round trip of a message, in milliseconds; `None` without a link.
    pub round_trip_ms: Option<f64>,
}

/// Answers with the JSON.
pub(super) async fn api(State(app): State<Arc<App>>) -> Response {
    match &app.site.peers {
        Some(list) => json(&list()),
        None => plain(StatusCode::NOT_FOUND, "not recorded\n"),
    }
}

/// Answers with the page.
pub(super) async fn page(State(app): State<Arc<App>>) -> Response {
    let Some(list) = &app.site.peers else {
        return not_recorded("Peers", "This node is in no cluster (cluster.enabled).");
    };
    let list = list();
    let content = html! {
        h1 { "Peers" }
        div data-reread=(REREAD_MS) { div #peers { (nodes(&list)) } }
        p { a href=(links::api(PATH)) { "This page as JSON" } }
    };
    html(StatusCode::OK, "Peers", &content)
}

fn nodes(list: &PeerList) -> Markup {
    let or_none = |number: Option<u64>| number.map_or_else(|| "–".to_owned(), format::count);
    let rows = html! {
        @for node in &list.nodes {
            tr {
                th scope="row" { (node.name) }
                td.text { (node.state) }
                td.text { code { (node.address) } }
                td.text { (node.version) }
                td.text { (node.platform.join(", ")) }
                td { (or_none(node.running)) " / " (format::count(node.slots)) }
                td { (or_none(node.queued)) }
                td { (format::count(node.taken)) }
                td { (format::count(node.given)) }
                td { (format::count(node.cores)) }
                td { (format::bytes(node.memory)) }
                td { (node.round_trip_ms.map_or_else(|| "–".to_owned(), |ms| format::seconds(ms / 1000.0))) }
            }
        }
    };
    let texts = ["Node", "State", "Address", "Version", "Platform"];
    let numbers = [
        "Running / slots",
        "Queued",
        "Runs for this node",
        "Runs from it here",
        "Cores",
        "Memory",
        "Round trip",
    ];
    html! {
        p.state { "Cluster " (list.cluster) ", seen from node " (list.node) "." }
        (table("Nodes", &texts, &numbers, &rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_escaped_and_unknown_numbers_are_no_zeros() {
        let list = PeerList {
            cluster: "<b>".to_owned(),
            nodes: vec![PeerNode {
                name: "a".to_owned(),
                platform: vec!["<i>=x".to_owned()],
                slots: 8,
                ..PeerNode::default()
            }],
            ..PeerList::default()
        };
        let page = nodes(&list).into_string();
        assert!(!page.contains("<b>") && !page.contains("<i>"), "{page}");
        assert!(page.contains("<td>– / 8</td>"), "{page}");
    }
}
