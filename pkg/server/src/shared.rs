//! What calls share: memory for large messages, and workspaces to decompress in.
//!
//! Whoever finds it used up waits, and a few clients that move a byte a minute could make everybody
//! wait for ever. Hence one rule: while somebody waits, a holder gives way whose client has used up
//! the patience that it has with it. That is a grace to begin with, shrinks while the server waits
//! for the client, and grows by a second for [`SLOWEST`] bytes, up to two graces: nobody buys a slow
//! end with a fast beginning. While nobody waits, clients are as slow as they like. Time in which
//! the server does not wait for the client, but for its own disk say, counts for neither.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, timeout},
};
use tonic::Status;

use crate::{Limits, status::unavailable};

/// Fewer bytes a second than this are too few, while others wait.
const SLOWEST: u32 = 64 * 1024;
/// How many times during a grace it is looked whether somebody waits.
const LOOKS: u32 = 5;

/// How long calls wait for each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Who is slow has units for longer than this.
    pub(crate) grace: Duration,
    /// Who waits for units does so for no longer than this.
    pub(crate) queue: Duration,
}

impl Patience {
    #[cfg(test)]
    pub(crate) const ENDLESS: Self = Self {
        grace: Duration::MAX,
        queue: Duration::MAX,
    };
}

impl From<&Limits> for Patience {
    fn from(limits: &Limits) -> Self {
        Self {
            grace: limits.grace,
            queue: limits.idle_timeout,
        }
    }
}

/// Units that calls share.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    units: Arc<Semaphore>,
    patience: Patience,
    /// How many units calls wait for, less those that holders are about to give back: when one call
    /// waits, not all of the slow ones have to go.
    wanted: AtomicI64,
}

/// Units that a call has, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Holding>);

#[derive(Debug)]
struct Holding {
    _permit: OwnedSemaphorePermit,
    units: u32,
    pool: Arc<Pool>,
    gives_way: AtomicBool,
}

impl Shared {
    /// This many units.
    pub(crate) fn new(units: u32, patience: Patience) -> Self {
        let permits = usize::try_from(units).unwrap_or(usize::MAX);
        Self(Arc::new(Pool {
            units: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            patience,
            wanted: AtomicI64::new(0),
        }))
    }

    /// Waits until this many units are free and takes them. All at once, so that no two calls wait
    /// for each other. `UNAVAILABLE` when clients that are fast enough to keep theirs do so for too
    /// long.
    pub(crate) async fn take(&self, units: u32) -> Result<Held, Status> {
        let free = Arc::clone(&self.0.units).try_acquire_many_owned(units);
        let permit = if let Ok(permit) = free {
            permit
        } else {
            let _waiting = Waiting::new(&self.0, units);
            let free = Arc::clone(&self.0.units).acquire_many_owned(units);
            timeout(self.0.patience.queue, free)
                .await
                .map_err(|_| unavailable("busy with the large calls of others; try again"))?
                .map_err(|_| unavailable("shutting down"))?
        };
        Ok(Held(Arc::new(Holding {
            _permit: permit,
            units,
            pool: Arc::clone(&self.0),
            gives_way: AtomicBool::new(false),
        })))
    }
}

/// A call that waits, also when it is given up.
struct Waiting<'a> {
    pool: &'a Pool,
    units: u32,
}

impl<'a> Waiting<'a> {
    fn new(pool: &'a Pool, units: u32) -> Self {
        pool.wanted.fetch_add(units.into(), Ordering::Relaxed);
        Self { pool, units }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let units = self.units.into();
        self.pool.wanted.fetch_sub(units, Ordering::Relaxed);
    }
}

impl Held {
    /// Watches the client for whose call this is held.
    pub(crate) fn pace(&self) -> Pace {
        Pace {
            held: Arc::downgrade(&self.0),
            most: self.0.pool.patience.grace.saturating_mul(2),
            patience: self.0.pool.patience.grace,
            since: None,
            look: None,
        }
    }
}

impl Holding {
    /// Whether somebody waits for these units; if so, they count as given back from now on.
    fn give_way(&self) -> bool {
        let wanted = &self.pool.wanted;
        let units = i64::from(self.units);
        let less = |wanted: i64| (wanted > 0).then(|| wanted - units);
        let gives_way = wanted
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok();
        self.gives_way.fetch_or(gives_way, Ordering::Relaxed);
        gives_way
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.gives_way.load(Ordering::Relaxed) {
            let units = self.units.into();
            self.pool.wanted.fetch_add(units, Ordering::Relaxed);
        }
    }
}

/// How fast a client moves while its call holds something. Holds nothing itself.
#[derive(Debug)]
pub(crate) struct Pace {
    held: Weak<Holding>,
    /// What the patience may grow to.
    most: Duration,
    /// How long the client may still be waited for when others wait, the present wait included.
    patience: Duration,
    /// When the present wait for the client began, if there is one.
    since: Option<Instant>,
    /// When to look again whether somebody waits. Made at the first wait.
    look: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Whether the call still has what it held.
    pub(crate) fn is_held(&self) -> bool {
        self.held.strong_count() > 0
    }

    /// The client sent or took this many bytes.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.rest();
        let bought = Duration::from_secs(bytes as u64) / SLOWEST;
        self.patience = self.patience.saturating_add(bought).min(self.most);
    }

    /// The client is not waited for.
    pub(crate) fn rest(&mut self) {
        if let Some(since) = self.since.take() {
            self.patience = self.patience.saturating_sub(since.elapsed());
        }
    }

    /// The client is waited for. Ready when its call has to give way, which it then has to do.
    pub(crate) fn poll_gives_way(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        loop {
            let Some(held) = self.held.upgrade() else {
                return Poll::Pending;
            };
            let grace = held.pool.patience.grace;
            if since.elapsed() >= self.patience && held.give_way() {
                return Poll::Ready(());
            }
            let look = self
                .look
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(grace / LOOKS)));
            ready!(look.as_mut().poll(cx));
            look.as_mut().reset(Instant::now() + grace / LOOKS);
        }
    }
}

/// What the client of a call that gives way is told.
pub(crate) fn too_slow() -> Status {
    Status::resource_exhausted(format!(
        "too slow while others waited: fewer than {SLOWEST} bytes a second went to or fro"
    ))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt as _;
    use tokio::time::sleep;
    use tonic::Code;

    use super::*;

    const GRACE: Duration = Duration::from_secs(5);
    const LONG: Duration = Duration::from_hours(1);
    const PATIENCE: Patience = Patience {
        grace: GRACE,
        queue: Duration::MAX,
    };

    async fn gives_way(held: &Held, bytes_a_second: usize) {
        let mut pace = held.pace();
        loop {
            let second = sleep(Duration::from_secs(1));
            tokio::select! {
                biased;
                () = poll_fn(|cx| pace.poll_gives_way(cx)) => return,
                () = second => pace.moved(bytes_a_second),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_slow_gives_way_once_somebody_waits() {
        let shared = Shared::new(2, PATIENCE);
        let held = shared.take(2).await.unwrap();
        let mut slow = Box::pin(gives_way(&held, 1));
        assert!(timeout(LONG, &mut slow).await.is_err(), "nobody waits");
        let mut waits = Box::pin(shared.take(1));
        tokio::select! {
            _ = &mut waits => panic!("nothing is free"),
            () = slow => {}
        }
        drop(held);
        waits.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_slow_has_a_grace() {
        let shared = Shared::new(1, PATIENCE);
        let held = shared.take(1).await.unwrap();
        let mut waits = Box::pin(shared.take(1));
        assert!((&mut waits).now_or_never().is_none());
        let start = Instant::now();
        gives_way(&held, 1).await;
        let waited = start.elapsed();
        assert!(waited >= GRACE && waited < GRACE * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_fast_enough_makes_others_wait() {
        let shared = Shared::new(1, PATIENCE);
        let held = shared.take(1).await.unwrap();
        let mut waits = Box::pin(shared.take(1));
        assert!((&mut waits).now_or_never().is_none());
        let fast = gives_way(&held, usize::try_from(SLOWEST).unwrap() * 2);
        assert!(timeout(LONG, fast).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_fast_on_average_and_rests_for_a_grace_makes_others_wait() {
        let shared = Shared::new(1, PATIENCE);
        let held = shared.take(1).await.unwrap();
        let mut waits = Box::pin(shared.take(1));
        assert!((&mut waits).now_or_never().is_none());
        let mut pace = held.pace();
        let bursts = async {
            loop {
                pace.moved(5_000_000);
                tokio::select! {
                    biased;
                    () = poll_fn(|cx| pace.poll_gives_way(cx)) => return,
                    () = sleep(GRACE) => {}
                }
            }
        };
        assert!(timeout(LONG, bursts).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_buys_a_slow_end_with_a_fast_beginning() {
        let shared = Shared::new(1, PATIENCE);
        let held = shared.take(1).await.unwrap();
        let mut waits = Box::pin(shared.take(1));
        assert!((&mut waits).now_or_never().is_none());
        let mut pace = held.pace();
        pace.moved(20_000_000);
        let start = Instant::now();
        poll_fn(|cx| pace.poll_gives_way(cx)).await;
        let waited = start.elapsed();
        assert!(waited <= GRACE * 3, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_client_is_not_waited_for_is_not_its_own() {
        let shared = Shared::new(1, PATIENCE);
        let held = shared.take(1).await.unwrap();
        let mut waits = Box::pin(shared.take(1));
        assert!((&mut waits).now_or_never().is_none());
        let mut pace = held.pace();
        let mut look = || poll_fn(|cx| pace.poll_gives_way(cx)).now_or_never();
        assert!(look().is_none());
        pace.rest();
        sleep(LONG).await;
        let mut look = || poll_fn(|cx| pace.poll_gives_way(cx)).now_or_never();
        assert!(look().is_none());
        sleep(GRACE).await;
        assert!(look().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_give_way_than_others_wait_for() {
        let shared = Shared::new(3, PATIENCE);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(shared.take(1).await.unwrap());
        }
        let mut waits = Box::pin(shared.take(1));
        assert!((&mut waits).now_or_never().is_none());
        let mut slow: Vec<_> = held
            .into_iter()
            .map(|held| {
                Box::pin(async move {
                    gives_way(&held, 1).await;
                    held
                })
            })
            .collect();
        let (first, _, rest) = futures::future::select_all(slow).await;
        slow = rest;
        let others = futures::future::select_all(slow);
        assert!(timeout(LONG, others).await.is_err(), "one is enough");
        drop(first);
        waits.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_no_longer_waits_makes_nobody_give_way() {
        let shared = Shared::new(1, PATIENCE);
        let held = shared.take(1).await.unwrap();
        assert!(shared.take(1).now_or_never().is_none());
        assert!(timeout(LONG, gives_way(&held, 1)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_too_long_is_told_to_try_again() {
        let queue = Duration::from_mins(1);
        let shared = Shared::new(1, Patience { queue, ..PATIENCE });
        let _held = shared.take(1).await.unwrap();
        let start = Instant::now();
        let status = shared.take(1).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(start.elapsed(), queue);
    }
}
