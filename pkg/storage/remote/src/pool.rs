//! Which of the connections with a peer a call goes over.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tonic::transport::Channel;

/// The connections. What little is called goes over few of them: on both sides a connection that
/// is in use has learned how much may be under way, and an idle one starts from little again.
pub(super) struct Pool {
    connections: Vec<Connection>,
    /// The one that is taken where all are equal.
    first: AtomicUsize,
}

struct Connection {
    channel: Channel,
    calls: Arc<AtomicUsize>,
}

/// Counts a call on a connection, until dropped.
#[derive(Debug)]
pub(super) struct Lease(Arc<AtomicUsize>);

impl Pool {
    pub(super) fn new(channels: Vec<Channel>) -> Self {
        let connection = |channel| Connection {
            channel,
            calls: Arc::default(),
        };
        Self {
            connections: channels.into_iter().map(connection).collect(),
            first: AtomicUsize::new(0),
        }
    }

    /// A connection with no more calls than any other.
    pub(super) fn take(&self) -> Option<(Channel, Lease)> {
        let calls: Vec<_> = self
            .connections
            .iter()
            .map(|c| c.calls.load(Relaxed))
            .collect();
        let connection = self
            .connections
            .get(choose(&calls, self.first.load(Relaxed)))?;
        connection.calls.fetch_add(1, Relaxed);
        let lease = Lease(Arc::clone(&connection.calls));
        Some((connection.channel.clone(), lease))
    }

    /// One of them may be broken without knowing it yet: the next call goes over another.
    pub(super) fn rotate(&self) {
        self.first.fetch_add(1, Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The place of the least number, the first one from `first` on.
fn choose(calls: &[usize], first: usize) -> usize {
    let len = calls.len().max(1);
    let from_first = |place: &usize| (place + len - first % len) % len;
    let order = |place: &usize| (calls.get(*place).copied(), from_first(place));
    (0..calls.len()).min_by_key(order).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_calls_stay_on_one_connection_and_many_are_spread() {
        assert_eq!(choose(&[0, 0, 0], 0), 0);
        assert_eq!(choose(&[1, 0, 0], 0), 1);
        assert_eq!(choose(&[2, 1, 1], 0), 1);
        assert_eq!(choose(&[3, 3, 2], 0), 2);
    }

    #[test]
    fn after_a_failure_another_one_comes_first() {
        assert_eq!(choose(&[0, 0, 0], 1), 1);
        assert_eq!(choose(&[0, 1, 1], 1), 0);
        assert_eq!(choose(&[0, 1, 0], 5), 2);
        assert_eq!(choose(&[0, 0], usize::MAX), 1);
    }

    #[tokio::test]
    async fn a_connection_is_in_use_as_long_as_its_lease() {
        let channel = || Channel::from_static("http://127.0.0.1:1").connect_lazy();
        let pool = Pool::new(vec![channel(), channel()]);
        let counts = || {
            pool.connections
                .iter()
                .map(|c| c.calls.load(Relaxed))
                .collect::<Vec<_>>()
        };
        let (_, lease) = pool.take().unwrap();
        let (_, other) = pool.take().unwrap();
        assert_eq!(counts(), [1, 1]);
        drop(lease);
        assert_eq!(counts(), [0, 1]);
        drop(other);
        assert_eq!(counts(), [0, 0]);
        assert!(Pool::new(Vec::new()).take().is_none());
    }
}
