//! The link between two nodes: frames in both directions over one HTTP/2 stream, with TLS on both sides.
//!
//! [`Links`] has at most one link to a node. Either side opens it when it has something to send: this node by
//! [`Links::dial`], the peer by a call that [`Links::link`] answers. The events of all links come out of one bounded
//! channel, in order for each link: [`Event::Up`], frames, [`Event::Down`].

mod dial;
mod hello;
mod outbox;
mod refusals;
mod run;
mod serve;
mod sockets;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gorego_scheduler::Generation;
use gorego_tls::ClusterTls;
use parking_lot::Mutex;
use reapi::gorego::cluster::{Frame, Hello, Record, frame::Content};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use self::{
    refusals::Refusals,
    table::{Link, Table},
};

pub use dial::DialError;
pub use sockets::{Connect, Socket, Tcp};
pub use tls::follow;

/// The most bytes of a frame.
pub const MAX_FRAME: usize = 64 * 1024;
/// The period of pings on a link.
const PING: Duration = Duration::from_secs(1);
/// The time without a received byte after which a link is broken.
const SILENCE: Duration = Duration::from_secs(4);
/// The time for a connection, its handshakes and the first frames of both sides.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The time in which frames that wait and `Bye` are sent, and the peer ends its side.
const GOODBYE: Duration = Duration::from_secs(2);
/// The most peers whose first frame is awaited, and the most connections that are being opened.
pub(crate) const MAX_HANDSHAKES: usize = 64;
/// The most events that wait. Beyond it, nothing is read from the links.
const MAX_EVENTS: usize = 256;

/// The end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// One of both sides closed it, for this reason. This is no sign that the peer failed.
    Bye(String),
    /// It broke, for this reason: the process or the network failed, or the peer is too slow.
    Broken(String),
}

/// An event of a link.
#[derive(Clone, Debug)]
pub enum Event {
    /// A link is up, after the first frame of the peer.
    Up {
        /// The peer.
        peer: Generation,
        /// Its first frame.
        hello: Hello,
    },
    /// A frame arrived.
    Frame {
        /// The peer.
        peer: Generation,
        /// The frame; neither `Hello` nor `Ping` nor `Bye`.
        frame: Frame,
    },
    /// A link that was up is down.
    Down {
        /// The peer.
        peer: Generation,
        /// The kind of its end, with the reason.
        how: How,
    },
}

/// The events of the links of a node.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<(Event, Arc<Link>)>);

impl Events {
    /// Waits for the next event. Frames can be sent on a link once this returns [`Event::Up`]. Frames for an earlier
    /// link to the same node are not sent on a new one.
    pub async fn recv(&mut self) -> Option<Event> {
        let (event, link) = self.0.recv().await?;
        if let Event::Up { .. } = event {
            link.announced.store(true, Ordering::Release);
        }
        Some(event)
    }

    /// Returns whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The error of a frame that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no link to this run of the node, or it is being closed.
    #[error("no link to the node")]
    Down,
    /// The frame has this many bytes, more than [`MAX_FRAME`].
    #[error("a frame of {0} bytes; at most {MAX_FRAME} are accepted")]
    TooLarge(usize),
    /// Too many frames wait. The link is broken, and [`Event::Down`] follows.
    #[error("the peer reads too slowly")]
    Full,
}

/// The settings of the links of a node.
pub struct Options {
    /// The name of the cluster.
    pub cluster: String,
    /// This run of this node.
    pub me: Generation,
    /// The facts about this node, sent in its first frame. Its `node` is `me`.
    pub record: Record,
    /// The TLS settings. Without them, links are plain text, and peers are trusted by the name that they give.
    pub tls: Option<watch::Receiver<ClusterTls>>,
    /// The way to open connections.
    pub connect: Arc<dyn Connect>,
    /// The most nodes with a link.
    pub max_nodes: usize,
}

/// The links of a node.
pub struct Links {
    cluster: String,
    me: Generation,
    record: Mutex<Record>,
    tls: Option<watch::Receiver<ClusterTls>>,
    connect: Arc<dyn Connect>,
    max_nodes: usize,
    table: Mutex<Table>,
    events: mpsc::Sender<(Event, Arc<Link>)>,
    handshakes: Arc<Semaphore>,
    refusals: Refusals,
    tasks: TaskTracker,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("me", &self.me)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Creates the links of a node, none yet, and their events. While the events are not read, senders wait. Once the
    /// events are dropped, all links end.
    pub fn new(options: Options) -> (Arc<Self>, Events) {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let links = Self {
            cluster: options.cluster,
            me: options.me,
            record: Mutex::new(options.record),
            tls: options.tls,
            connect: options.connect,
            max_nodes: options.max_nodes,
            table: Mutex::default(),
            events,
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            refusals: Refusals::default(),
            tasks: TaskTracker::new(),
        };
        (Arc::new(links), Events(receiver))
    }

    /// Returns this run of this node.
    pub const fn me(&self) -> &Generation {
        &self.me
    }

    /// Changes the facts about this node for future links.
    pub fn set_record(&self, record: Record) {
        *self.record.lock() = record;
    }

    /// Sends a frame, gossip before others. Never waits: if too many frames wait, the link breaks.
    pub fn send(&self, peer: &Generation, frame: Frame) -> Result<(), SendError> {
        let link = self.table.lock().announced(peer).cloned();
        let link = link.ok_or(SendError::Down)?;
        let works = is_work(&frame);
        link.outbox.push(frame)?;
        if works {
            *link.worked.lock() = Instant::now();
        }
        Ok(())
    }

    /// Closes a link after the frames that wait. [`Event::Down`] follows on both sides.
    pub fn close(&self, peer: &Generation, why: &str) {
        if let Some(link) = self.table.lock().link(peer) {
            link.outbox.close(why);
        }
    }

    /// Returns the peers with a link.
    pub fn peers(&self) -> Vec<Generation> {
        let table = self.table.lock();
        let open = table.all().filter(|link| link.outbox.is_open());
        open.map(|link| link.peer.clone()).collect()
    }

    /// Returns whether a link to this run of a node is up.
    pub fn is_up(&self, peer: &Generation) -> bool {
        let table = self.table.lock();
        let link = table.announced(peer);
        link.is_some_and(|link| link.outbox.is_open())
    }

    /// Returns whether there is a link to this run of a node, even if [`Event::Up`] was not received yet.
    pub fn has_link(&self, peer: &Generation) -> bool {
        let table = self.table.lock();
        let link = table.link(peer);
        link.is_some_and(|link| link.outbox.is_open())
    }

    /// Returns the time since a frame other than gossip and pings was sent or received; `None` without a link.
    pub fn idle_for(&self, peer: &Generation) -> Option<Duration> {
        let table = self.table.lock();
        let worked = *table.link(peer)?.worked.lock();
        Some(worked.elapsed())
    }

    /// Returns the time of the last ping's round trip; `None` without a link, before the first answer, and for a peer
    /// that does not answer.
    pub fn round_trip(&self, peer: &Generation) -> Option<Duration> {
        self.table.lock().link(peer)?.outbox.round_trip()
    }

    /// Closes all links, and refuses new ones. Returns once they are down, after a few seconds at most. Meanwhile the
    /// events have to be read.
    pub async fn shutdown(&self, why: &str) {
        self.close_all(why);
        self.tasks.close();
        let _ = timeout(GOODBYE * 2, self.tasks.wait()).await;
    }

    /// Breaks all links when the authorities of nodes change, so that each peer proves its name again. Actions go on if
    /// the new links are up within a second.
    pub(crate) async fn follow_authorities(&self) {
        let Some(mut tls) = self.tls.clone() else {
            return;
        };
        let mut known = tls.borrow_and_update().clone();
        while tls.changed().await.is_ok() {
            let current = tls.borrow_and_update().clone();
            if !current.has_authorities_of(&known) {
                tracing::info!(
                    "the authorities of nodes (cluster.tls.ca_file) changed: links are opened again"
                );
                for link in self.table.lock().all() {
                    let why = "the authorities of nodes changed";
                    link.outbox.end(How::Broken(why.to_owned()));
                }
            }
            known = current;
        }
    }

    fn close_all(&self, why: &str) {
        let mut table = self.table.lock();
        table.shut();
        for link in table.all() {
            link.outbox.close(why);
        }
    }

    fn hello(&self) -> Frame {
        let record = self.record.lock().clone();
        outbox::frame(Content::Hello(hello::hello(&self.cluster, record)))
    }
}

const fn is_work(frame: &Frame) -> bool {
    !matches!(
        frame.content,
        None | Some(Content::Gossip(_) | Content::Ping(_))
    )
}
