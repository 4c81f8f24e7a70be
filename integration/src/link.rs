//! A network link between a client and a server: a forwarder on loopback that adds latency, limits the
//! bandwidth, counts connections and bytes, and fails on request.
//!
//! It forwards bytes without knowledge of gRPC, so that failures happen in the middle of messages, too.

mod carry;
mod quota;
mod rate;

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, mpsc as std_mpsc},
    thread,
    time::Duration,
};

use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::{self, Instant},
};

pub use self::rate::{Rate, parse_latency};
use self::{carry::Change, quota::Quotas, rate::Pacer};
use crate::port::Reservation;

/// The longest wait for a condition; far more than it needs, so that only a condition that never comes
/// true fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The direction of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// The settings of a link.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The latency of each direction. Opening a connection takes a round trip.
    pub latency: Duration,
    /// The rate of each direction, shared by all connections; `None` for no limit.
    pub rate: Option<Rate>,
    /// The seed of random numbers of bytes.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            latency: Duration::ZERO,
            rate: None,
            seed: 0,
        }
    }
}

/// Totals since the link was created.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Accepted connections.
    pub connections: u64,
    /// Open connections.
    pub open: u64,
    /// Bytes delivered to the server.
    pub up: u64,
    /// Bytes delivered to clients.
    pub down: u64,
}

/// A running link. Dropping it ends its connections.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The state shared by the caller and the forwarding thread.
#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    shape: Mutex<(Duration, Option<Rate>)>,
    pacers: [Mutex<Pacer>; 2],
    quotas: Mutex<Quotas>,
    stalled: watch::Sender<bool>,
    counts: watch::Sender<Counts>,
}

/// A change to all connections, and the channel that reports when it is done.
#[derive(Debug)]
struct Order {
    change: Change,
    done: std_mpsc::Sender<()>,
}

impl Link {
    /// Creates a link to `server` without latency and limits.
    pub fn to(server: SocketAddr) -> Self {
        Self::with(server, Settings::default())
    }

    /// Creates a link to `server`. Both ends must be on loopback.
    pub fn with(server: SocketAddr, settings: Settings) -> Self {
        for end in [server, settings.listen] {
            assert!(end.ip().is_loopback(), "{end} is not on loopback");
        }
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            shape: Mutex::new((settings.latency, settings.rate)),
            pacers: Default::default(),
            quotas: Mutex::new(Quotas::new(settings.seed)),
            stalled: watch::Sender::new(false),
            counts: watch::Sender::default(),
        });
        let port = Reservation::new(settings.listen)
            .unwrap_or_else(|e| panic!("binding {}: {e}", settings.listen));
        let address = port.address();
        let (orders, receiver) = mpsc::unbounded_channel();
        let (ready, listening) = std_mpsc::channel();
        let forwarder = carry::serve(Arc::clone(&shared), port, receiver, ready);
        let thread = thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime for the link").block_on(forwarder);
            })
            .expect("a thread for the link");
        listening.recv().expect("the link listens");
        Self {
            address,
            shared,
            orders: Some(orders),
            thread: Some(thread),
        }
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address as a gRPC target.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Connects new connections to another server; open ones stay with the old one.
    pub fn lead_to(&self, server: SocketAddr) {
        assert!(server.ip().is_loopback(), "{server} is not on loopback");
        *self.shared.server.lock().expect("no holder panics") = server;
    }

    /// Sets the one-way latency of bytes received from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.shape.lock().expect("no holder panics").0 = latency;
    }

    /// Sets the rate of each direction.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.shared.shape.lock().expect("no holder panics").1 = rate;
    }

    /// Resets every open connection; new ones are accepted.
    pub fn cut(&self) {
        self.order(Change::Cut);
    }

    /// Refuses new connections until [`Self::restore`]; open ones stay.
    pub fn refuse(&self) {
        self.order(Change::Refuse);
    }

    /// Resets open connections and refuses new ones, as if the server were down.
    pub fn down(&self) {
        self.refuse();
        self.cut();
    }

    /// Holds all bytes back until [`Self::restore`]. Connections stay open, and new ones are accepted.
    pub fn stall(&self) {
        self.shared.stalled.send_replace(true);
    }

    /// Ends each open or new connection once it has delivered exactly `bytes` more in that direction.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.cut_within(direction, bytes..=bytes);
    }

    /// Ends each open or new connection after a random number of bytes in the range, drawn in the order
    /// of their opening.
    pub fn cut_within(&self, direction: Direction, bytes: RangeInclusive<u64>) {
        self.quotas(|quotas| quotas.set(direction, Some(bytes)));
    }

    /// Ends all faults: accepts connections, delivers bytes that were held back, and cuts no more.
    pub fn restore(&self) {
        for direction in [Direction::Up, Direction::Down] {
            self.quotas(|quotas| quotas.set(direction, None));
        }
        self.shared.stalled.send_replace(false);
        self.order(Change::Listen);
    }

    /// Returns the current totals.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until the totals satisfy `met`. Panics after a minute.
    pub async fn wait_for(&self, met: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        let in_time = time::timeout(PATIENCE, counts.wait_for(met)).await;
        let counts = in_time.unwrap_or_else(|_| panic!("not met in time: {:?}", self.counts()));
        *counts.expect("the link outlives the wait")
    }

    /// Makes a change and waits until it is done.
    fn order(&self, change: Change) {
        let (done, wait) = std_mpsc::channel();
        let orders = self.orders.as_ref().expect("taken only by drop");
        let sent = orders.send(Order { change, done });
        sent.expect("the link's thread runs");
        wait.recv().expect("the link's thread runs");
    }

    fn quotas(&self, change: impl FnOnce(&mut Quotas)) {
        change(&mut self.shared.quotas.lock().expect("no holder panics"));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The thread ends when the channel of its orders is closed.
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Schedules `bytes`. Returns the times at which the last byte leaves and arrives.
    fn send(&self, direction: Direction, bytes: usize) -> (Instant, Instant) {
        let (latency, rate) = *self.shape.lock().expect("no holder panics");
        let mut pacer = self.pacers[direction as usize]
            .lock()
            .expect("no holder panics");
        let left = pacer.send(Instant::now(), rate, bytes);
        (left, left + latency)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }
}

#[cfg(test)]
mod tests;
