//! Remembers for a short while that something was done.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How much is remembered at most. Beyond that all is forgotten, which costs a repetition.
const CAPACITY: usize = 16 * 1024;

/// Things done within the last `period`.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    period: Duration,
    done: Mutex<HashMap<T, Instant>>,
}

impl<T: Eq + Hash> Recent<T> {
    pub(crate) fn new(period: Duration) -> Self {
        Self {
            period,
            done: Mutex::default(),
        }
    }

    fn done(&self) -> MutexGuard<'_, HashMap<T, Instant>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes it, and says whether that is news.
    pub(crate) fn note(&self, what: T) -> bool {
        let now = Instant::now();
        let mut done = self.done();
        if done.len() >= CAPACITY {
            done.clear();
        }
        let last = done.get(&what).copied();
        let news = last.is_none_or(|last| now - last >= self.period);
        if news {
            done.insert(what, now);
        }
        news
    }

    /// Whether it was noted within the period.
    pub(crate) fn has(&self, what: &T) -> bool {
        let noted = self.done().get(what).copied();
        noted.is_some_and(|noted| noted.elapsed() < self.period)
    }

    /// Forgets it, and says whether it was noted within the period.
    pub(crate) fn take(&self, what: &T) -> bool {
        let noted = self.done().remove(what);
        noted.is_some_and(|noted| noted.elapsed() < self.period)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_noted_is_news_again_after_the_period() {
        let recent = Recent::new(Duration::from_secs(1));
        assert!(recent.note("a"));
        assert!(!recent.note("a"));
        assert!(recent.has(&"a"));
        advance(Duration::from_secs(1)).await;
        assert!(!recent.has(&"a"));
        assert!(recent.note("a"));
        assert!(recent.take(&"a"));
        assert!(!recent.take(&"a"));
    }
}
