//! A network link between a client and a server: a forwarder on loopback that adds latency, limits
//! bandwidth, counts what passes, and breaks when told to.
//!
//! It forwards bytes as they come and knows nothing of gRPC, so what it breaks, it breaks anywhere.

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
use self::{
    carry::{Hold, What},
    quota::Quotas,
    rate::Pacer,
};

/// How long a condition may take to come true; far more than it needs, so that only one that
/// never does fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What a link is like while it works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// One way. A connection takes a round trip to open.
    pub latency: Duration,
    /// Of each direction, shared by all connections; `None` is as fast as the machine.
    pub rate: Option<Rate>,
    /// What random numbers of bytes are drawn from.
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

/// What has passed since the link was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Connections that were accepted.
    pub connections: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Bytes given to the server.
    pub up: u64,
    /// Bytes given to clients.
    pub down: u64,
}

/// A running link. Its connections end with it.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What the caller and the forwarding thread both see.
#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    shape: Mutex<(Duration, Option<Rate>)>,
    pacers: [Mutex<Pacer>; 2],
    quotas: Mutex<Quotas>,
    stalled: watch::Sender<bool>,
    counts: watch::Sender<Counts>,
}

/// Something to do with all connections, and whom to tell when it is done.
#[derive(Debug)]
struct Order {
    what: What,
    done: std_mpsc::Sender<()>,
}

impl Link {
    /// A link to the server at `server` that is as fast as the machine.
    pub fn to(server: SocketAddr) -> Self {
        Self::with(server, Settings::default())
    }

    /// A link of another shape. Both ends must be on loopback.
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
        let hold = Hold::new(settings.listen)
            .unwrap_or_else(|e| panic!("binding {}: {e}", settings.listen));
        let address = hold.address();
        let (orders, receiver) = mpsc::unbounded_channel();
        let (ready, listening) = std_mpsc::channel();
        let forwarder = carry::serve(Arc::clone(&shared), hold, receiver, ready);
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

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a target of gRPC clients.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Connects to another server from now on; open connections stay with the old one.
    pub fn lead_to(&self, server: SocketAddr) {
        assert!(server.ip().is_loopback(), "{server} is not on loopback");
        *self.shared.server.lock().expect("no holder panics") = server;
    }

    /// Another one-way latency, for what is received from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.shape.lock().expect("no holder panics").0 = latency;
    }

    /// Another rate of each direction.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.shared.shape.lock().expect("no holder panics").1 = rate;
    }

    /// Resets every open connection. New ones are welcome.
    pub fn cut(&self) {
        self.order(What::Cut);
    }

    /// Refuses new connections until [`Self::restore`]; open ones stay.
    pub fn refuse(&self) {
        self.order(What::Refuse);
    }

    /// Both of them: the server is gone, as far as clients can tell.
    pub fn down(&self) {
        self.refuse();
        self.cut();
    }

    /// Passes nothing on until [`Self::restore`], and loses nothing; connections stay open, and
    /// new ones are accepted.
    pub fn stall(&self) {
        self.shared.stalled.send_replace(true);
    }

    /// Ends each connection, open or new, once it has passed on `bytes` more in that direction:
    /// exactly those arrive.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.cut_within(direction, bytes..=bytes);
    }

    /// The same, after a number of bytes that is drawn for each connection, in the order in which
    /// they were opened.
    pub fn cut_within(&self, direction: Direction, bytes: RangeInclusive<u64>) {
        self.quotas(|quotas| quotas.set(direction, Some(bytes)));
    }

    /// Ends every fault: accepts connections, passes on what was held up, and cuts no more.
    pub fn restore(&self) {
        for direction in [Direction::Up, Direction::Down] {
            self.quotas(|quotas| quotas.set(direction, None));
        }
        self.shared.stalled.send_replace(false);
        self.order(What::Listen);
    }

    /// What has passed so far.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until what has passed satisfies `met`; panics when it never does.
    pub async fn wait_for(&self, met: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        let in_time = time::timeout(PATIENCE, counts.wait_for(met)).await;
        let counts = in_time.unwrap_or_else(|_| panic!("never came to that: {:?}", self.counts()));
        *counts.expect("the link outlives the wait")
    }

    /// Returns when it is done.
    fn order(&self, what: What) {
        let (done, wait) = std_mpsc::channel();
        let orders = self.orders.as_ref().expect("taken only by drop");
        let sent = orders.send(Order { what, done });
        sent.expect("the link's thread runs");
        wait.recv().expect("the link's thread runs");
    }

    fn quotas(&self, change: impl FnOnce(&mut Quotas)) {
        change(&mut self.shared.quotas.lock().expect("no holder panics"));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The thread ends when nobody can give it orders any more.
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // What it panicked with was printed then.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Puts `bytes` on the wire: when the last of them has left, and when it arrives.
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
