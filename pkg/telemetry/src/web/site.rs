//! The routes, and what applies to all of them.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts,
};
use maud::Markup;
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::error;

use super::{
    METRICS, Site, Ui, access, action, actions,
    api::{self, MissQuery},
    assets::{self, Asset},
    builds,
    events::{self, OpenPages},
    layout, overview, peers, profile,
    serve::Peer,
    snapshot::{Snapshot, Traffic},
    status::Status,
};
use crate::builds::{ActionView, Build, Builds, TargetView};

/// The paths that every client may request.
const OPEN: [&str; 3] = [METRICS, "/healthz", "/readyz"];
/// The beginnings of the paths that programs request rather than people.
const FOR_PROGRAMS: [&str; 4] = ["/api/", "/events", "/statusz", profile::DEBUG];
/// The content type of pages.
const HTML: &str = "text/html; charset=utf-8";
/// The longest text of an error, in bytes.
const MAX_ERROR: usize = 64 * 1024;
/// The number of builds on the overview.
const RECENT: usize = 5;
/// The longest time to make an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Headers of every response. Nothing from elsewhere is loaded, and no other site can embed or read it.
const SECURITY: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
         img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// The site with its clock and its live numbers.
pub(super) struct App {
    pub(super) site: Site,
    pub(super) pages: OpenPages,
    pub(super) shutdown: CancellationToken,
    started: Instant,
}

impl App {
    /// Returns the state of the server.
    pub(super) fn status(&self) -> Status {
        let uptime = self.started.elapsed().as_secs();
        Status {
            version: self.site.version.to_owned(),
            started: (now_ms() / 1000).saturating_sub(uptime),
            uptime_seconds: uptime,
            readiness: self.site.health.readiness(),
            components: (self.site.components)(),
        }
    }

    /// Returns the current numbers.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            at_ms: now_ms(),
            status: self.status(),
            traffic: Traffic::read(&self.site.tiers, &self.site.calls),
            actions: self.site.actions.as_ref().map(|it| (it.totals)()),
            builds: self
                .builds()
                .map_or_else(Vec::new, |builds| builds.recent(0, RECENT).builds),
        }
    }
}

impl App {
    /// Returns the recent builds, if they are recorded.
    pub(super) const fn builds(&self) -> Option<&Builds> {
        self.site.builds.as_ref()
    }

    /// Returns a build.
    pub(super) async fn build(&self, id: &str) -> Option<Build> {
        self.builds()?.build(id).await
    }

    /// Returns a target.
    pub(super) async fn target(&self, label: &str) -> Option<TargetView> {
        self.builds()?.target(label).await
    }

    /// Returns an action with a page of its inputs.
    pub(super) async fn action(&self, digest: &str, query: &MissQuery) -> Option<ActionView> {
        let builds = self.builds()?;
        let from = query.inputs_from.unwrap_or(0);
        builds.action(digest, query.build.as_deref(), from).await
    }
}

/// Returns the time in milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The answers to all requests.
pub(super) struct Answers {
    app: Arc<App>,
    router: Router,
}

impl Answers {
    pub(super) fn new(site: Site, shutdown: CancellationToken) -> Self {
        let app = Arc::new(App {
            site,
            pages: OpenPages::default(),
            shutdown,
            started: Instant::now(),
        });
        let router = Router::new()
            .route(METRICS, get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/statusz", get(statusz))
            .route("/api/v1/status", get(status))
            .route("/events", get(events::events))
            .route(profile::CPU, get(profile::cpu))
            .route(profile::HEAP, get(profile::heap))
            .route("/", get(overview::page))
            .route("/builds", get(builds::list))
            .route("/builds/{id}", get(builds::page))
            .route(actions::PATH, get(actions::page))
            .route("/actions/{*digest}", get(action::page))
            .route("/targets", get(action::target))
            .route(peers::PATH, get(peers::page))
            .route("/find", get(builds::find))
            .merge(api::routes())
            .fallback(async || not_found());
        let router = [&assets::STYLE, &assets::SCRIPT, &assets::ICON]
            .into_iter()
            .fold(router, |router, embedded| {
                let answer = async move |headers: HeaderMap| asset(embedded, &headers);
                router.route(embedded.path, get(answer))
            })
            .with_state(Arc::clone(&app));
        Self { app, router }
    }

    /// Samples the numbers until the shutdown.
    pub(super) async fn sample(&self) {
        events::sample(&self.app).await;
    }

    /// Answers one request. Its body is refused, since there is nothing to change.
    pub(super) async fn answer<B>(&self, request: Request<B>, peer: Peer) -> Response
    where
        B: http_body::Body,
    {
        let (mut parts, body) = request.into_parts();
        let shows_pages = shows_pages(&parts);
        let has_body = !body.is_end_stream();
        drop(body);
        let mut response = if let Some(refused) = self.refusal(&parts, has_body, &peer) {
            refused
        } else {
            let longest = match parts.uri.path() {
                profile::CPU => profile::LONGEST,
                _ => ANSWER,
            };
            parts.extensions.insert(peer);
            let request = Request::from_parts(parts, Body::empty());
            let answer = timeout(longest, self.router.clone().oneshot(request));
            answer.await.map_or_else(
                |_| {
                    plain(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the answer took too long\n",
                    )
                },
                IntoResponse::into_response,
            )
        };
        if shows_pages {
            response = error_page(response).await;
        }
        let headers = response.headers_mut();
        for (name, value) in SECURITY {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let fresh = HeaderValue::from_static("no-store");
        headers.entry(header::CACHE_CONTROL).or_insert(fresh);
        response
    }

    fn refusal(&self, request: &Parts, has_body: bool, peer: &Peer) -> Option<Response> {
        let path = request.uri.path();
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let text = format!("{path} accepts GET and HEAD only\n");
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(header::ALLOW, allowed);
            return Some(response);
        }
        if has_body {
            let text = "a request must have no content\n";
            return Some(plain(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        if OPEN.contains(&path) {
            return None;
        }
        // Even where all clients may see the page.
        if path.starts_with(profile::DEBUG)
            && self.app.site.ui != Ui::Off
            && Ui::Local.refusal(peer.address, request).is_some()
        {
            return Some(plain(StatusCode::FORBIDDEN, profile::FOREIGN));
        }
        let for_program = is_for_programs(path);
        let why = self
            .app
            .site
            .ui
            .refusal(peer.address, request)
            .or_else(|| {
                let foreign = for_program && access::is_cross_site(&request.headers);
                foreign.then_some("not served to pages of other sites")
            })?;
        Some(plain(StatusCode::FORBIDDEN, format!("{why}\n")))
    }
}

async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter();
    let accept: Vec<_> = accept.filter_map(|accept| accept.to_str().ok()).collect();
    match app.site.metrics.expose(&accept.join(",")) {
        Ok((content_type, text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(why) => {
            error!("failed to encode metrics: {why}");
            let text = "failed to encode metrics\n";
            plain(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    }
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    let readiness = app.site.health.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    plain(status, readiness.to_string())
}

async fn statusz(State(app): State<Arc<App>>) -> Response {
    json(&app.status())
}

async fn status(State(app): State<Arc<App>>) -> Response {
    json(&app.snapshot())
}

fn asset(asset: &'static Asset, headers: &HeaderMap) -> Response {
    let tag = asset.tag();
    let known = headers.get(header::IF_NONE_MATCH);
    let about = [
        (header::CONTENT_TYPE, asset.content_type.to_owned()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::ETAG, tag.clone()),
    ];
    if known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, asset.content).into_response()
}

fn not_found() -> Response {
    let text = format!("not found; the page is at /, metrics are at {METRICS}\n");
    plain(StatusCode::NOT_FOUND, text)
}

/// Returns whether a browser shows the response to a person.
fn shows_pages(request: &Parts) -> bool {
    let path = request.uri.path();
    let is_page = !OPEN.contains(&path) && !is_for_programs(path);
    let accept = request.headers.get(header::ACCEPT);
    is_page && accept.is_some_and(|it| it.as_bytes().starts_with(b"text/html"))
}

fn is_for_programs(path: &str) -> bool {
    FOR_PROGRAMS.iter().any(|start| path.starts_with(start))
}

/// Makes a page of an error that is a line of text.
async fn error_page(response: Response) -> Response {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let is_text = content_type.is_some_and(|it| it.as_bytes().starts_with(b"text/plain"));
    if !is_text || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, MAX_ERROR).await;
    let text = text.unwrap_or_default();
    let page = layout::error(status, String::from_utf8_lossy(&text).trim()).into_string();
    parts.headers.remove(header::CONTENT_LENGTH);
    let content_type = HeaderValue::from_static(HTML);
    parts.headers.insert(header::CONTENT_TYPE, content_type);
    Response::from_parts(parts, page.into())
}

/// Returns a response of text.
pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, content_type, text.into()).into_response()
}

/// Returns a response of JSON, indented for people.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => {
            let content_type = [(header::CONTENT_TYPE, "application/json")];
            (content_type, text + "\n").into_response()
        }
        Err(why) => {
            error!("failed to encode JSON: {why}");
            let text = "failed to encode JSON\n";
            plain(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    }
}

/// Returns the page of something that is not recorded.
pub(super) fn not_recorded(title: &str, text: &str) -> Response {
    let content = maud::html! {
        h1 { (title) }
        p.empty { (text) }
        p { a href="/builds" { "Recent builds" } }
    };
    html(StatusCode::NOT_FOUND, title, &content)
}

/// Returns a page.
pub(super) fn html(status: StatusCode, title: &str, content: &Markup) -> Response {
    let content_type = [(header::CONTENT_TYPE, HTML)];
    let page = layout::page(title, content).into_string();
    (status, content_type, page).into_response()
}
