//! The queue of misses to explain.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::records::Job;

/// The most misses that wait. Beyond it the oldest is dropped, and explained when its page is opened.
const MAX_JOBS: usize = 2048;

/// The misses to explain, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    queue: Mutex<VecDeque<Job>>,
    added: Notify,
    dropped: AtomicU64,
}

impl Jobs {
    /// Adds a miss. Drops the oldest one if there are too many.
    pub(crate) fn add(&self, job: Job) {
        let mut queue = self.queue.lock();
        if queue.len() >= MAX_JOBS {
            queue.pop_front();
            self.dropped.fetch_add(1, Relaxed);
        }
        queue.push_back(job);
        drop(queue);
        self.added.notify_one();
    }

    /// Waits for the next miss. Cancel-safe.
    pub(crate) async fn next(&self) -> Job {
        loop {
            let next = self.queue.lock().pop_front();
            if let Some(next) = next {
                return next;
            }
            self.added.notified().await;
        }
    }

    /// Returns the number of dropped misses.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}
