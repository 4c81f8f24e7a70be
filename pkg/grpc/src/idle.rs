//! Connections without a call. At the limit on connections, the one that has had no call for the longest time is
//! closed: its client can connect again, while a client that waits cannot know when another one leaves.

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

/// The time in which most clients leave. After it another connection is closed, too: many clients may wait, and the
/// closed connections may be dead.
const LEAVING: Duration = Duration::from_millis(50);
/// The time to leave for a client that has made calls before: it may be about to make another.
const GOODBYE: Duration = Duration::from_millis(200);
/// The time to leave after a call, since the end of the response may still be in transit.
const GRACE: Duration = Duration::from_secs(5);

/// The connections without a call.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    queue: Mutex<Queue>,
    entered: Notify,
}

/// The tokens that close connections, in the order in which the connections became idle.
#[derive(Debug, Default)]
struct Queue {
    connections: BTreeMap<u64, CancellationToken>,
    next: u64,
}

impl Idle {
    /// Adds a connection, without a call for now.
    pub(crate) fn connection(self: &Arc<Self>) -> Arc<Activity> {
        let activity = Activity {
            idle: Arc::clone(self),
            close: CancellationToken::new(),
            calls: Mutex::default(),
        };
        activity.update(&mut lock(&activity.calls));
        Arc::new(activity)
    }

    /// Closes one connection after another, as soon as each is without a call, until this is dropped.
    pub(crate) async fn make_room(&self) -> Infallible {
        loop {
            if self.close_some(1) {
                sleep(LEAVING).await;
            } else {
                self.entered.notified().await;
            }
        }
    }

    /// Closes up to `count` connections that are without a call now; false if there are fewer.
    pub(crate) fn close_some(&self, count: usize) -> bool {
        let mut queue = lock(&self.queue);
        (0..count).all(|_| {
            let longest = queue.connections.pop_first();
            longest.map(|(_, close)| close.cancel()).is_some()
        })
    }
}

/// The calls of one connection.
#[derive(Debug)]
pub(crate) struct Activity {
    idle: Arc<Idle>,
    close: CancellationToken,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    running: usize,
    /// The connection's number in the queue while no call runs.
    idle: Option<u64>,
    /// The end of the last call.
    ended: Option<Instant>,
}

impl Activity {
    /// Begins a call, which runs until this is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> RunningCall {
        let mut calls = lock(&self.calls);
        calls.running += 1;
        self.update(&mut calls);
        RunningCall(Arc::clone(self))
    }

    /// Waits until the connection has to make room for another.
    pub(crate) async fn has_to_close(&self) {
        self.close.cancelled().await;
    }

    /// Waits until a connection whose client was asked to leave may be closed: no call runs, and 5 s have passed since
    /// the last. Once `drain` is cancelled, the connection is closed after 200 ms if no call has run since. A slow
    /// client may then lose the end of a response that ended just before, since the departure of its last bytes cannot
    /// be observed.
    pub(crate) async fn may_be_closed(&self, drain: &CancellationToken) {
        let unused = async {
            if lock(&self.calls).ended.is_some() {
                sleep(GOODBYE).await;
            }
            while let Some(later) = self.unused_at() {
                sleep_until(later).await;
            }
        };
        let drained = async {
            drain.cancelled().await;
            let start = Instant::now();
            sleep(GOODBYE).await;
            self.is_unused_since(start)
        };
        tokio::select! {
            () = unused => {}
            true = drained => {}
        }
    }

    fn is_unused_since(&self, time: Instant) -> bool {
        let calls = lock(&self.calls);
        calls.running == 0 && calls.ended.is_none_or(|ended| ended <= time)
    }

    /// Returns the earliest time at which the connection may be unused; `None` if it is.
    fn unused_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let calls = lock(&self.calls);
        let since = if calls.running > 0 { now } else { calls.ended? };
        Some(since + GRACE).filter(|at| *at > now)
    }

    /// Enters or leaves the queue after the number of calls has changed.
    fn update(&self, calls: &mut Calls) {
        if calls.running == 0 {
            let mut queue = lock(&self.idle.queue);
            let number = queue.next;
            queue.next += 1;
            queue.connections.insert(number, self.close.clone());
            calls.idle = Some(number);
            self.idle.entered.notify_one();
        } else if let Some(number) = calls.idle.take() {
            lock(&self.idle.queue).connections.remove(&number);
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some(number) = lock(&self.calls).idle {
            lock(&self.idle.queue).connections.remove(&number);
        }
    }
}

/// A call in progress.
#[derive(Debug)]
pub(crate) struct RunningCall(Arc<Activity>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        let mut calls = lock(&self.0.calls);
        calls.running -= 1;
        calls.ended = Some(Instant::now());
        self.0.update(&mut calls);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, future::join_all};

    use super::*;

    /// The tokens of a server that serves, and of one that shuts down.
    fn drains() -> [CancellationToken; 2] {
        let drains = [CancellationToken::new(), CancellationToken::new()];
        drains[1].cancel();
        drains
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_idle_for_the_longest_time_makes_room() {
        let idle = Arc::<Idle>::default();
        let [first, second, third] = std::array::from_fn(|_| idle.connection());
        drop(first.call());
        let busy = second.call();
        let state = || [&first, &second, &third].map(|it| it.close.is_cancelled());

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
    async fn clients_have_time_to_take_the_end_of_their_last_response() {
        let idle = Arc::<Idle>::default();
        let connection = idle.connection();
        let [serving, draining] = drains();
        let unused = connection.may_be_closed(&serving).now_or_never();
        assert!(unused.is_some(), "no call yet");
        let call = connection.call();
        let start = Instant::now();
        let closed = async {
            let times = [&serving, &draining].map(async |drain| {
                connection.may_be_closed(drain).await;
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
        let idle = Arc::<Idle>::default();
        let connection = idle.connection();
        drop(connection.call());
        let start = Instant::now();
        let [serving, draining] = drains();
        connection.may_be_closed(&draining).await;
        assert!(start.elapsed() < GOODBYE * 2, "{:?}", start.elapsed());
        assert!(start.elapsed() >= GOODBYE, "{:?}", start.elapsed());
        connection.may_be_closed(&serving).await;
        assert!(start.elapsed() >= GRACE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn drain_closes_a_connection_used_after_it_was_asked_to_leave() {
        let connection = Arc::<Idle>::default().connection();
        drop(connection.call());
        let drain = CancellationToken::new();
        let start = Instant::now();
        let used = async {
            sleep(GOODBYE * 2).await;
            drop(connection.call());
            sleep(GOODBYE).await;
            drain.cancel();
        };
        tokio::join!(connection.may_be_closed(&drain), used);
        assert!(start.elapsed() < GRACE, "{:?}", start.elapsed());
        assert!(start.elapsed() >= GOODBYE * 4, "{:?}", start.elapsed());
    }

    #[test]
    fn without_descriptors_only_idle_connections_are_closed() {
        let idle = Arc::<Idle>::default();
        let connections: [_; 4] = std::array::from_fn(|_| idle.connection());
        let _busy = connections[0].call();
        let closed = || connections.each_ref().map(|one| one.close.is_cancelled());
        idle.close_some(2);
        assert_eq!(closed(), [false, true, true, false]);
        idle.close_some(2);
        assert_eq!(closed(), [false, true, true, true]);
    }

    #[test]
    fn ended_connections_leave_the_queue() {
        let idle = Arc::<Idle>::default();
        let connection = idle.connection();
        drop(connection.call());
        drop(connection);
        assert_eq!(lock(&idle.queue).connections.len(), 0);
    }
}
