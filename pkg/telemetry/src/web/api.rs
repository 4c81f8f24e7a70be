//! The JSON of builds, actions, targets and nodes: the same values as the pages show.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Query, State},
    response::Response,
    routing::get,
};
use http::StatusCode;
use serde::Deserialize;

use super::{
    actions, peers,
    site::{App, json, plain},
};

/// The number of builds of a page of JSON, unless the request names another.
const LIMIT: usize = 50;

/// The page of builds that is requested.
#[derive(Deserialize)]
struct BuildsQuery {
    offset: Option<usize>,
    limit: Option<usize>,
}

/// The build whose miss of an action is requested, and the page of inputs.
#[derive(Deserialize)]
pub(super) struct MissQuery {
    pub(super) build: Option<String>,
    pub(super) inputs_from: Option<usize>,
}

/// The target that is requested.
#[derive(Deserialize)]
pub(super) struct TargetQuery {
    pub(super) label: String,
}

/// Returns the routes of builds, actions, targets and nodes.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/v1/builds", get(builds))
        .route("/api/v1/builds/{id}", get(build))
        .route("/api/v1/actions", get(actions::api))
        .route("/api/v1/actions/{*digest}", get(action))
        .route("/api/v1/targets", get(target))
        .route("/api/v1/peers", get(peers::api))
}

async fn builds(State(app): State<Arc<App>>, Query(page): Query<BuildsQuery>) -> Response {
    let (offset, limit) = (page.offset.unwrap_or(0), page.limit.unwrap_or(LIMIT));
    found(app.builds().map(|builds| builds.recent(offset, limit)))
}

async fn build(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    found(app.build(&id).await)
}

async fn action(
    State(app): State<Arc<App>>,
    Path(digest): Path<String>,
    Query(query): Query<MissQuery>,
) -> Response {
    found(app.action(&digest, &query).await)
}

async fn target(
    State(app): State<Arc<App>>,
    Query(TargetQuery { label }): Query<TargetQuery>,
) -> Response {
    found(app.target(&label).await)
}

fn found<T: serde::Serialize>(value: Option<T>) -> Response {
    match value {
        Some(value) => json(&value),
        None => plain(StatusCode::NOT_FOUND, "not recorded\n"),
    }
}
