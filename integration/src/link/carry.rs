//! Carries bytes between the two ends of each connection.

use std::{
    future, io,
    sync::{Arc, mpsc as std_mpsc},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{Direction, Order, Shared};
use crate::port::Reservation;

/// The most bytes of one read.
const CHUNK: usize = 64 * 1024;

/// The bytes buffered for a slow receiver in addition to those on the wire: about as many as the buffers
/// of a real connection hold.
const BUFFER: u64 = 4 * 1024 * 1024;

/// The time by which a sender may be ahead of the wire. It exceeds the precision of timers; otherwise
/// the rate would not be reached.
const AHEAD: Duration = Duration::from_millis(3);

/// A change to all connections.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Resets open connections.
    Cut,
    /// Refuses new connections.
    Refuse,
    /// Accepts new connections.
    Listen,
}

/// Forwards connections until the channel of orders is closed.
pub(super) async fn serve(
    shared: Arc<Shared>,
    port: Reservation,
    mut orders: mpsc::UnboundedReceiver<Order>,
    ready: std_mpsc::Sender<()>,
) {
    let mut connections = JoinSet::new();
    let mut listener = Some(port.listen());
    let _ = ready.send(());
    let mut id = 0;
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(Order { change, done }) = order else { return };
                match change {
                    Change::Cut => connections.shutdown().await,
                    Change::Refuse => listener = None,
                    Change::Listen => listener = listener.or_else(|| Some(port.listen())),
                }
                // The caller may be gone.
                let _ = done.send(());
            }
            client = accept(listener.as_ref()) => {
                let connection = Connection::open(Arc::clone(&shared), id);
                id += 1;
                connections.spawn(connection.run(client));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    match listener {
        None => future::pending().await,
        Some(listener) => {
            let accepted = listener.accept().await;
            accepted.expect("accepting a connection").0
        }
    }
}

/// One end of a connection. Dropping it resets the connection unless it was closed in an orderly way.
struct End {
    stream: TcpStream,
    orderly: bool,
}

impl End {
    fn new(stream: TcpStream) -> Self {
        // Fails only if the connection is already gone.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            orderly: false,
        }
    }

    /// Closes the connection after everything written has arrived. With unread bytes, the system would
    /// reset it and drop unsent ones.
    async fn close(mut self) {
        let _ = self.stream.shutdown().await;
        let _ = tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await;
        self.orderly = true;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.orderly {
            // Fails only if the connection is already gone.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// A connection, counted as open until it is dropped.
struct Connection {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let quotas = self.shared.quotas.lock();
        quotas.expect("no holder panics").close(self.id);
        self.shared.count(|counts| counts.open -= 1);
    }
}

/// The reason why forwarding ended.
enum Ended {
    /// The quota of that direction is used up.
    Quota(Direction),
    /// One end closed the connection.
    Broken,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl Connection {
    fn open(shared: Arc<Shared>, id: u64) -> Self {
        let quotas = shared.quotas.lock();
        quotas.expect("no holder panics").open(id);
        shared.count(|counts| {
            counts.connections += 1;
            counts.open += 1;
        });
        Self { shared, id }
    }

    async fn run(self, client: TcpStream) {
        let mut client = End::new(client);
        let (latency, rate) = *self.shared.shape.lock().expect("no holder panics");
        // To the client the connection is already open, so the round trip delays its first bytes.
        sleep_until(Instant::now() + 2 * latency).await;
        let server = *self.shared.server.lock().expect("no holder panics");
        let Ok(server) = TcpStream::connect(server).await else {
            return;
        };
        let mut server = End::new(server);
        let on_the_wire = rate.map_or(0, |rate| rate.bytes_in(latency));
        let window = usize::try_from(BUFFER + on_the_wire).expect("memory for a link's window");
        let (client_reads, client_writes) = client.stream.split();
        let (server_reads, server_writes) = server.stream.split();
        let result = tokio::try_join!(
            self.forward(Direction::Up, client_reads, server_writes, window),
            self.forward(Direction::Down, server_reads, client_writes, window),
        );
        match result {
            Ok(_) => (client.orderly, server.orderly) = (true, true),
            Err(Ended::Broken) => {}
            Err(Ended::Quota(direction)) => {
                let (from, to) = match direction {
                    Direction::Up => (client, server),
                    Direction::Down => (server, client),
                };
                drop(from);
                to.close().await;
            }
        }
    }

    /// Forwards one direction until its sender has closed it and all bytes have arrived.
    async fn forward(
        &self,
        direction: Direction,
        from: ReadHalf<'_>,
        to: WriteHalf<'_>,
        window: usize,
    ) -> Result<(), Ended> {
        let (wire, arriving) = mpsc::unbounded_channel();
        let sent = self.send(direction, from, wire, window);
        tokio::try_join!(sent, self.deliver(direction, arriving, to))?;
        Ok(())
    }

    async fn send(
        &self,
        direction: Direction,
        mut from: ReadHalf<'_>,
        wire: mpsc::UnboundedSender<Piece>,
        window: usize,
    ) -> Result<(), Ended> {
        let window = Arc::new(Semaphore::new(window));
        loop {
            let mut bytes = BytesMut::with_capacity(CHUNK);
            if from.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            let size = u32::try_from(bytes.len()).expect("a chunk's size");
            let room = Arc::clone(&window).acquire_many_owned(size).await;
            let (left, due) = self.shared.send(direction, bytes.len());
            // Fails only if the receiving half failed, which ends this one.
            let _ = wire.send(Piece {
                due,
                bytes: bytes.freeze(),
                _room: room.expect("never closed"),
            });
            if left > Instant::now() + AHEAD {
                sleep_until(left - AHEAD).await;
            }
        }
    }

    async fn deliver(
        &self,
        direction: Direction,
        mut arriving: mpsc::UnboundedReceiver<Piece>,
        mut to: WriteHalf<'_>,
    ) -> Result<(), Ended> {
        let mut stalled = self.shared.stalled.subscribe();
        while let Some(piece) = arriving.recv().await {
            if piece.due > Instant::now() {
                sleep_until(piece.due).await;
            }
            let flowing = stalled.wait_for(|stalled| !stalled).await;
            flowing.expect("the link outlives its connections");
            let taken = self.take(direction, piece.bytes.len());
            to.write_all(&piece.bytes[..taken.bytes]).await?;
            let passed = u64::try_from(taken.bytes).expect("a chunk's size");
            self.shared.count(|counts| match direction {
                Direction::Up => counts.up += passed,
                Direction::Down => counts.down += passed,
            });
            if taken.last {
                return Err(Ended::Quota(direction));
            }
        }
        Ok(to.shutdown().await?)
    }

    fn take(&self, direction: Direction, wanted: usize) -> super::quota::Taken {
        let quotas = self.shared.quotas.lock();
        let mut quotas = quotas.expect("no holder panics");
        quotas.take(self.id, direction, wanted)
    }
}

/// Bytes on the wire.
struct Piece {
    due: Instant,
    bytes: Bytes,
    /// A part of the window, returned when the bytes have arrived.
    _room: OwnedSemaphorePermit,
}
