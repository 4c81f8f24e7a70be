//! Connections without a call. When there is no room for another connection, the one that has had
//! none for the longest is closed: its client can connect again, and who waits could never know
//! when somebody leaves.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// The time in which most clients leave; after that, another one is asked, too. Many may wait, and
/// those that were asked may be gone.
const LEAVING: Duration = Duration::from_millis(50);
/// The time to leave for a client that has made calls before: it may be about to make another.
const GOODBYE: Duration = Duration::from_millis(200);
/// The time to leave after a call, since the end of the response may still be on its way.
const GRACE: Duration = Duration::from_secs(5);

/// The connections without a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Idle(Arc<Pool>);

#[derive(Debug, Default)]
struct Pool {
    queue: Mutex<Queue>,
    entered: Notify,
}

/// How to close each connection, by a number that grows with the time at which its last call ended.
#[derive(Debug, Default)]
struct Queue {
    connections: BTreeMap<u64, CancellationToken>,
    next: u64,
}

impl Idle {
    /// A connection, without a call for now.
    pub(crate) fn connection(&self) -> Activity {
        let connection = Connection {
            idle: self.clone(),
            close: CancellationToken::new(),
            calls: Mutex::default(),
        };
        connection.change(|_| {}, None);
        Activity(Arc::new(connection))
    }

    /// Closes one connection after another, as soon as each is without a call, until this is
    /// dropped.
    pub(crate) async fn make_room(&self) -> Infallible {
        loop {
            let longest = lock(&self.0.queue).connections.pop_first();
            if let Some((_, close)) = longest {
                close.cancel();
                sleep(LEAVING).await;
            } else {
                self.0.entered.notified().await;
            }
        }
    }

    /// Closes up to `count` connections that are without a call now.
    pub(crate) fn close_some(&self, count: usize) {
        let mut queue = lock(&self.0.queue);
        for _ in 0..count {
            let Some((_, close)) = queue.connections.pop_first() else {
                return;
            };
            close.cancel();
        }
    }

    fn enter(&self, close: CancellationToken) -> u64 {
        let mut queue = lock(&self.0.queue);
        let number = queue.next;
        queue.next += 1;
        queue.connections.insert(number, close);
        self.0.entered.notify_one();
        number
    }

    fn leave(&self, number: u64) {
        lock(&self.0.queue).connections.remove(&number);
    }
}

/// What goes on on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    idle: Idle,
    close: CancellationToken,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    running: usize,
    /// The connection's number while there are none.
    idle: Option<u64>,
    /// The end of the last call, if there was one.
    ended: Option<Instant>,
}

impl Activity {
    /// A call, until this is dropped.
    pub(crate) fn call(&self) -> RunningCall {
        self.0.change(|running| *running += 1, None);
        RunningCall(self.clone())
    }

    /// Waits until the connection is to make room for another.
    pub(crate) async fn has_to_close(&self) {
        self.0.close.cancelled().await;
    }

    /// Waits until the connection may be closed: no call runs, and 5 s have passed since the last. With
    /// `ending`, 200 ms are enough if no call ran since. A slow client may then lose the end of a response
    /// that ended just before: nothing tells when its last bytes have left.
    pub(crate) async fn has_to_be_closed(&self, ending: bool) {
        let asked = Instant::now();
        if lock(&self.0.calls).ended.is_some() {
            sleep(GOODBYE).await;
        }
        if ending && self.is_unused_since(asked) {
            return;
        }
        while let Some(later) = self.may_close_at() {
            sleep_until(later).await;
        }
    }

    fn is_unused_since(&self, time: Instant) -> bool {
        let calls = lock(&self.0.calls);
        calls.running == 0 && calls.ended.is_none_or(|ended| ended <= time)
    }

    /// The time to look again whether the connection is unused; `None` when it is.
    fn may_close_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let calls = lock(&self.0.calls);
        let since = if calls.running > 0 { now } else { calls.ended? };
        Some(since + GRACE).filter(|at| *at > now)
    }
}

impl Connection {
    /// Counts the running calls anew. `ended` is the end of one of them.
    fn change(&self, change: impl FnOnce(&mut usize), ended: Option<Instant>) {
        let mut calls = lock(&self.calls);
        change(&mut calls.running);
        if calls.running == 0 {
            calls.idle = Some(self.idle.enter(self.close.clone()));
            calls.ended = ended;
        } else if let Some(number) = calls.idle.take() {
            self.idle.leave(number);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(number) = lock(&self.calls).idle {
            self.idle.leave(number);
        }
    }
}

/// A call that goes on.
#[derive(Debug)]
pub(crate) struct RunningCall(Activity);

impl Drop for RunningCall {
    fn drop(&mut self) {
        let ended = Some(Instant::now());
        self.0.0.change(|running| *running -= 1, ended);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, future::join_all};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_had_no_call_for_the_longest_makes_room() {
        let idle = Idle::default();
        let [first, second, third] = std::array::from_fn(|_| idle.connection());
        drop(first.call());
        let busy = second.call();
        let has_to_close = |activity: &Activity| activity.0.close.is_cancelled();
        let state = || [&first, &second, &third].map(has_to_close);

        let mut room = Box::pin(idle.make_room());
        assert!((&mut room).now_or_never().is_none());
        assert_eq!(state(), [false, false, true]);
        let _ = tokio::time::timeout(LEAVING * 2, &mut room).await;
        assert_eq!(state(), [true, false, true]);
        drop(busy);
        assert!(room.now_or_never().is_none());
        assert_eq!(state(), [true, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_time_to_take_the_end_of_its_last_response() {
        let idle = Idle::default();
        let connection = idle.connection();
        assert!(
            connection.has_to_be_closed(false).now_or_never().is_some(),
            "no call yet"
        );
        let call = connection.call();
        let start = Instant::now();
        let closed = async {
            let times = [false, true].map(async |ending| {
                connection.has_to_be_closed(ending).await;
                start.elapsed()
            });
            join_all(times).await
        };
        let call = async {
            sleep(GRACE * 3).await;
            drop(call);
        };
        let (closed, ()) = tokio::join!(closed, call);
        assert!(closed.iter().all(|time| *time >= GRACE * 4), "{closed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn drain_closes_an_idle_connection_after_200_ms() {
        let idle = Idle::default();
        let connection = idle.connection();
        drop(connection.call());
        let start = Instant::now();
        connection.has_to_be_closed(true).await;
        assert!(start.elapsed() < GOODBYE * 2, "{:?}", start.elapsed());
        assert!(start.elapsed() >= GOODBYE, "{:?}", start.elapsed());
        connection.has_to_be_closed(false).await;
        assert!(start.elapsed() >= GRACE, "{:?}", start.elapsed());
    }

    #[test]
    fn as_many_connections_are_closed_as_are_without_a_call() {
        let idle = Idle::default();
        let connections: [_; 4] = std::array::from_fn(|_| idle.connection());
        let _busy = connections[0].call();
        let closed = || connections.each_ref().map(|one| one.0.close.is_cancelled());
        idle.close_some(2);
        assert_eq!(closed(), [false, true, true, false]);
        idle.close_some(2);
        assert_eq!(closed(), [false, true, true, true]);
    }

    #[test]
    fn a_connection_that_is_gone_is_forgotten() {
        let idle = Idle::default();
        let connection = idle.connection();
        drop(connection.call());
        drop(connection);
        assert_eq!(lock(&idle.0.queue).connections.len(), 0);
    }
}
