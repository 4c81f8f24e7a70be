//! The persistent workers that wait for another action.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gorego_storage::Digest;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::process::Process;
use crate::Options;

/// The time for which no worker is started after one of the same kind failed at its first action.
const PAUSE: Duration = Duration::from_mins(1);
/// The most kinds of workers that are remembered because they failed.
const MAX_BROKEN: usize = 100;
/// The longest time between two checks for workers that have been idle for too long.
const TICK: Duration = Duration::from_secs(5);
/// The shortest such time.
const MIN_TICK: Duration = Duration::from_millis(10);

/// The persistent workers of a node.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The idle workers, the one that has been idle for longest first.
    idle: Mutex<VecDeque<Process>>,
    slots: Arc<Semaphore>,
    max: u32,
    idle_timeout: Duration,
    max_uses: u32,
    pub(super) silence: Duration,
    /// The most memory of all idle workers, in bytes.
    max_bytes: u64,
    /// The kinds of workers that failed at their first action, and when.
    broken: Mutex<VecDeque<(Digest, Instant)>>,
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Pool {
    /// Creates the pool of a node; `None` if it has no persistent workers.
    pub(crate) fn new(options: &Options) -> Option<Arc<Self>> {
        let persistent = options.persistent.as_ref()?;
        let max = persistent.max;
        Some(Arc::new(Self {
            idle: Mutex::default(),
            slots: Arc::new(Semaphore::new(usize::try_from(max).unwrap_or_default())),
            max,
            idle_timeout: persistent.idle_timeout,
            max_uses: persistent.max_uses,
            silence: persistent.silence,
            max_bytes: options.idle_memory(),
            broken: Mutex::default(),
            answered: AtomicU64::default(),
            failed: AtomicU64::default(),
        }))
    }

    /// Returns the counts of the workers that there are, of the actions that they ran, and of those that failed.
    pub(crate) fn counts(&self) -> PersistentCounts {
        let free = u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX);
        PersistentCounts {
            workers: self.max.saturating_sub(free).into(),
            answered: self.answered.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }

    /// Removes and returns the idle worker with this key that was used last.
    pub(super) fn take(&self, key: &Digest) -> Option<Process> {
        loop {
            let mut idle = self.idle.lock();
            let place = idle.iter().rposition(|process| process.key == *key)?;
            let mut process = idle.remove(place)?;
            drop(idle);
            if process.is_sound() {
                return Some(process);
            }
        }
    }

    /// Returns a permit to start a worker. If there are too many, ends those that have been idle for longest; `None` if
    /// all of them run actions, or are ending.
    pub(super) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                return Some(slot);
            }
            let oldest = self.idle.lock().pop_front()?;
            oldest.end().await;
        }
    }

    /// Keeps a worker for later actions, unless it has served its last one or has not started. Ends those that have been
    /// idle for longest while the idle ones together have too much memory.
    pub(super) fn put(&self, mut process: Process) {
        if process.uses >= self.max_uses || !process.has_started() {
            return;
        }
        process.idle_since = Instant::now();
        let mut ended = Vec::new();
        let mut idle = self.idle.lock();
        idle.push_back(process);
        let bytes = |process: &Process| process.used.resident_bytes;
        while idle.iter().map(bytes).sum::<u64>() > self.max_bytes {
            ended.extend(idle.pop_front());
        }
        drop(idle);
    }

    /// Remembers that a new worker failed.
    pub(super) fn add_broken(&self, key: Digest) {
        let mut broken = self.broken.lock();
        broken.push_back((key, Instant::now()));
        if broken.len() > MAX_BROKEN {
            broken.pop_front();
        }
    }

    /// Returns whether a new worker with this key failed a short time ago.
    pub(super) fn is_broken(&self, key: &Digest) -> bool {
        let broken = self.broken.lock();
        let mut broken = broken.iter();
        broken.any(|(broken, since)| broken == key && since.elapsed() < PAUSE)
    }

    /// Ends the idle workers, and waits until their processes have ended.
    pub(super) async fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        for process in idle {
            process.end().await;
        }
    }

    /// Ends workers that have been idle for too long, until `stop` is cancelled, and then all idle ones.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let tick = self.idle_timeout.clamp(MIN_TICK, TICK);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.clear().await,
                () = sleep(tick) => {}
            }
            let mut idle = self.idle.lock();
            let is_due = |process: &Process| process.idle_since.elapsed() >= self.idle_timeout;
            let due = idle.iter().take_while(|process| is_due(process)).count();
            let ended: Vec<_> = idle.drain(..due).collect();
            drop(idle);
            drop(ended);
        }
    }
}

/// The counts of persistent workers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PersistentCounts {
    /// The workers that there are, idle or not.
    pub workers: u64,
    /// The actions that a worker ran to their end or to their timeout.
    pub answered: u64,
    /// The actions that ran once more by themselves, as a worker failed.
    pub failed: u64,
}
