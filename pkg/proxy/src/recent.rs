//! Sets of a bounded size whose members expire.

use std::{collections::HashMap, hash::Hash, mem, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// A set of the members inserted within the last `period`, at most `capacity` of them.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    period: Duration,
    capacity: usize,
    start: Instant,
    halves: Mutex<Halves<T>>,
}

/// Two sets with the times of insertion, in seconds. The older one is dropped when the younger one is full.
type Halves<T> = [HashMap<T, u32>; 2];

impl<T: Eq + Hash> Recent<T> {
    pub(crate) fn new(period: Duration, capacity: usize) -> Self {
        Self {
            period,
            capacity,
            start: Instant::now(),
            halves: Mutex::default(),
        }
    }

    fn now(&self) -> u32 {
        u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    pub(crate) fn insert(&self, member: T) {
        let mut halves = self.halves.lock();
        let [young, old] = &mut *halves;
        if young.len() >= self.capacity / 2 {
            *old = mem::take(young);
        }
        young.insert(member, self.now());
    }

    pub(crate) fn contains(&self, member: &T) -> bool {
        let (now, halves) = (self.now(), self.halves.lock());
        let inserted = halves.iter().filter_map(|half| half.get(member));
        let mut ages = inserted.map(|inserted| now.saturating_sub(*inserted));
        ages.any(|age| Duration::from_secs(age.into()) < self.period)
    }

    pub(crate) fn remove(&self, member: &T) {
        for half in &mut *self.halves.lock() {
            half.remove(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn members_expire_after_the_period() {
        let recent = Recent::new(Duration::from_secs(2), 10);
        recent.insert("a");
        advance(Duration::from_secs(1)).await;
        assert!(recent.contains(&"a"));
        assert!(!recent.contains(&"b"));
        advance(Duration::from_secs(1)).await;
        assert!(!recent.contains(&"a"));
        recent.insert("a");
        assert!(recent.contains(&"a"));
    }

    #[tokio::test(start_paused = true)]
    async fn removed_members_are_gone_from_both_halves() {
        let recent = Recent::new(Duration::from_secs(1), 2);
        recent.insert("a");
        recent.insert("b");
        for member in ["a", "b"] {
            assert!(recent.contains(&member));
            recent.remove(&member);
            assert!(!recent.contains(&member));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_members_make_room_for_new_ones() {
        let recent = Recent::new(Duration::MAX, 10);
        for member in 0..=10 {
            recent.insert(member);
        }
        let members = (0..=10).filter(|member| recent.contains(member));
        assert_eq!(members.collect::<Vec<_>>(), (5..=10).collect::<Vec<_>>());
    }
}
