//! The connections with a peer.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tonic::transport::Channel;

/// Counts a call on its connection until it is dropped.
pub(super) type ConnectionUse = Arc<()>;

/// The connections, and the leases on each. A few calls share one connection: on both sides a
/// connection in use has learned how much may be in flight, and an idle one starts from little again.
pub(super) struct Pool {
    connections: Vec<(Channel, ConnectionUse)>,
    /// The place of the connection that is preferred.
    first: AtomicUsize,
}

impl Pool {
    pub(super) fn new(channels: Vec<Channel>) -> Self {
        let connections = channels.into_iter();
        Self {
            connections: connections
                .map(|channel| (channel, ConnectionUse::default()))
                .collect(),
            first: AtomicUsize::new(0),
        }
    }

    /// Returns a connection with no more calls than any other.
    pub(super) fn lease(&self) -> Option<(Channel, ConnectionUse)> {
        let len = self.connections.len();
        let first = self.first.load(Relaxed).checked_rem(len)?;
        let in_order = self.connections.iter().cycle().skip(first).take(len);
        in_order
            .min_by_key(|(_, lease)| Arc::strong_count(lease))
            .cloned()
    }

    /// Returns the number of calls on all connections.
    pub(super) fn calls(&self) -> usize {
        let leases = self.connections.iter();
        leases.map(|(_, lease)| Arc::strong_count(lease) - 1).sum()
    }

    /// Prefers another connection: the present one may be broken without knowing it yet.
    pub(super) fn rotate(&self) {
        self.first.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leases a connection, and returns its place and the lease.
    fn lease(pool: &Pool) -> (usize, ConnectionUse) {
        let (_, lease) = pool.lease().unwrap();
        let mut connections = pool.connections.iter();
        let place = connections.position(|(_, other)| Arc::ptr_eq(other, &lease));
        (place.unwrap(), lease)
    }

    fn pool(connections: usize) -> Pool {
        let channel = || Channel::from_static("http://127.0.0.1:1").connect_lazy();
        Pool::new((0..connections).map(|_| channel()).collect())
    }

    #[tokio::test]
    async fn few_calls_stay_on_one_connection_and_many_are_spread() {
        let pool = pool(2);
        for _ in 0..3 {
            assert_eq!(lease(&pool).0, 0);
        }
        let (one, two) = (lease(&pool), lease(&pool));
        assert_eq!((one.0, two.0), (0, 1));
        drop(two);
        assert_eq!(lease(&pool).0, 1);
        drop(one);
        assert_eq!(lease(&pool).0, 0);
    }

    #[tokio::test]
    async fn after_a_failure_another_connection_is_preferred() {
        let pool = pool(3);
        pool.rotate();
        let one = lease(&pool);
        assert_eq!((one.0, lease(&pool).0), (1, 2));
        drop(one);
        pool.first.store(usize::MAX, Relaxed);
        assert_eq!(lease(&pool).0, usize::MAX % 3);
        assert!(Pool::new(Vec::new()).lease().is_none());
    }
}
