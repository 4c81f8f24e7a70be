//! The numbers that the page shows while it is open, as server-sent events.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::stream;
use http::{StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tracing::error;

use super::{
    history::History,
    overview::{self, Fragment},
    serve::{MAX_CONNECTIONS, Peer},
    site::{App, plain},
    snapshot::Snapshot,
};

/// The interval between two samples while a page is open. The least between two events.
const WATCHED: Duration = Duration::from_secs(1);
/// The interval between two samples while no page is open.
const UNWATCHED: Duration = Duration::from_secs(10);
/// The most pages that are open at once; half of the connections, so that others are answered.
const MAX_STREAMS: usize = MAX_CONNECTIONS / 2;

/// The open pages, and the samples for their charts.
pub(super) struct OpenPages {
    pub(super) history: Mutex<History>,
    latest: watch::Sender<Bytes>,
    /// Notified when a page is opened.
    opened: Notify,
    streams: Arc<Semaphore>,
}

impl Default for OpenPages {
    fn default() -> Self {
        Self {
            history: Mutex::default(),
            latest: watch::Sender::default(),
            opened: Notify::new(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// The content of an event.
#[derive(Serialize)]
struct Event<'a> {
    snapshot: &'a Snapshot,
    /// The parts of the overview that change, as HTML.
    fragments: Vec<Fragment>,
}

/// Takes samples until the shutdown, and sends them to the open pages.
pub(super) async fn sample(app: &App) {
    let pages = &app.pages;
    loop {
        let begun = Instant::now();
        let snapshot = app.snapshot();
        pages.history.lock().add(&snapshot);
        if pages.latest.receiver_count() > 0 {
            send(app, &snapshot);
        }
        let next = async {
            if pages.latest.receiver_count() == 0 {
                tokio::select! {
                    () = sleep_until(begun + UNWATCHED) => return,
                    () = pages.opened.notified() => {}
                }
            }
            sleep_until(begun + WATCHED).await;
        };
        tokio::select! {
            () = next => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}

/// Sends an event to all open pages. A page that is slow misses some.
fn send(app: &App, snapshot: &Snapshot) {
    let rates = app.pages.history.lock().rates();
    let fragments = overview::fragments(snapshot, &rates);
    let event = Event {
        snapshot,
        fragments,
    };
    match serde_json::to_string(&event) {
        Ok(json) => {
            let event = Bytes::from(format!("data: {json}\n\n"));
            app.pages.latest.send_replace(event);
        }
        Err(why) => error!("failed to encode an event: {why}"),
    }
}

/// Answers with events until the client disconnects or the server shuts down.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
) -> Response {
    let Ok(permit) = Arc::clone(&app.pages.streams).try_acquire_owned() else {
        let text = format!("{MAX_STREAMS} pages are open, which is the limit\n");
        return plain(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    peer.has_events.store(true, Relaxed);
    let latest = app.pages.latest.subscribe();
    app.pages.opened.notify_one();
    let shutdown = app.shutdown.clone();
    let events = stream::unfold((latest, permit), move |(mut latest, permit)| {
        let shutdown = shutdown.clone();
        async move {
            tokio::select! {
                changed = latest.changed() => changed.ok()?,
                () = shutdown.cancelled() => return None,
            }
            let event = latest.borrow_and_update().clone();
            let frame = Ok::<_, Infallible>(Frame::data(event));
            Some((frame, (latest, permit)))
        }
    });
    let content_type = [(header::CONTENT_TYPE, "text/event-stream")];
    let body = Body::new(StreamBody::new(events));
    (content_type, body).into_response()
}
