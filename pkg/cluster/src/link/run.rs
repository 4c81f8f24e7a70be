//! A link from its first frames to its end.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use reapi::gorego::cluster::{Frame, Hello, frame::Content};
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::{Event, How, Links, SILENCE, is_work, table::Link};

/// The frames of a peer. They end at an error.
pub(crate) type Frames = BoxStream<'static, Result<Frame, Status>>;

impl Links {
    /// Runs a link that was added to the table, after the link that it replaces has ended.
    pub(crate) fn start(
        self: &Arc<Self>,
        link: Arc<Link>,
        hello: Hello,
        frames: Frames,
        replaced: Option<Arc<Link>>,
    ) {
        let links = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Some(old) = replaced {
                let why = format!("another connection to {} replaces it", link.peer);
                old.outbox.end(How::Broken(why));
                old.down.cancelled().await;
            }
            let run = AssertUnwindSafe(links.run(&link, hello, frames));
            // A link without an end would count as up for ever.
            let how = run.catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(
                    "the task of the link to {} panicked: report the panic",
                    link.peer
                );
                How::Broken("the task of the link panicked".to_owned())
            });
            link.outbox.end(how);
            // If the link ended before, the first reason counts.
            let how = link.outbox.ended().await;
            tracing::debug!("link to {} is down: {how:?}", link.peer);
            let peer = link.peer.clone();
            let down = Event::Down { peer, how };
            let _ = links.events.send((down, Arc::clone(&link))).await;
            // This order ensures that the next link to the peer comes up after this one is down.
            links.table.lock().remove(&link);
            link.down.cancel();
        });
    }

    /// Reports the frames of a link until it ends.
    async fn run(&self, link: &Arc<Link>, hello: Hello, mut frames: Frames) -> How {
        let peer = link.peer.clone();
        let mut event = Event::Up { peer, hello };
        loop {
            if self.events.send((event, Arc::clone(link))).await.is_err() {
                return How::Broken("this node has ended".to_owned());
            }
            match self.next(link, &mut frames).await {
                Ok(next) => event = next,
                Err(how) => return how,
            }
        }
    }

    /// Waits for the next frame to report.
    async fn next(&self, link: &Link, frames: &mut Frames) -> Result<Event, How> {
        loop {
            let next = tokio::select! {
                biased;
                how @ How::Broken(_) = link.outbox.ended() => return Err(how),
                () = link.outbox.overdue() => Ok(None),
                next = timeout(SILENCE, frames.next()) => next,
            };
            let broken = |why: &str| Err(How::Broken(why.to_owned()));
            match next {
                Err(_) => return broken("nothing was received for 4 s"),
                Ok(None) => return broken("the peer's side ended"),
                Ok(Some(Err(why))) => return broken(why.message()),
                Ok(Some(Ok(frame))) => {
                    let now = Instant::now();
                    *link.received.lock() = now;
                    match frame.content {
                        Some(Content::Bye(bye)) => return Err(How::Bye(bye.why)),
                        Some(Content::Ping(ping)) => link.outbox.pinged(ping),
                        None | Some(Content::Hello(_)) => {}
                        Some(_) => {
                            if is_work(&frame) {
                                *link.worked.lock() = now;
                            }
                            let peer = link.peer.clone();
                            return Ok(Event::Frame { peer, frame });
                        }
                    }
                }
            }
        }
    }
}
