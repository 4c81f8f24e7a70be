//! Operations that callers share: the first caller of a key starts one, others join it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The operations in progress, by key, and the value that the callers of each share.
#[derive(Debug)]
pub(crate) struct Inflight<K, V>(Operations<K, V>);

type Operations<K, V> = Arc<Mutex<HashMap<K, Arc<V>>>>;

/// An operation that its first caller carries out. It is in progress until this is dropped.
#[derive(Debug)]
pub(crate) struct Operation<K: Eq + Hash, V> {
    operations: Operations<K, V>,
    pub(crate) key: K,
    pub(crate) value: Arc<V>,
}

impl<K, V> Default for Inflight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Copy + Eq + Hash, V> Inflight<K, V> {
    /// Returns the value of the operation in progress.
    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        lock(&self.0).get(key).cloned()
    }

    /// Joins the operation in progress or, if `join` declines its value, a new one, which the caller has to
    /// carry out. `None` if `join` declines the `new` value, too.
    pub(crate) fn join<T>(
        &self,
        key: &K,
        new: impl FnOnce() -> V,
        join: impl Fn(&Arc<V>) -> Option<T>,
    ) -> Option<(T, Option<Operation<K, V>>)> {
        let mut operations = lock(&self.0);
        if let Some(joined) = operations.get(key).and_then(&join) {
            return Some((joined, None));
        }
        let value = Arc::new(new());
        let joined = join(&value)?;
        operations.insert(*key, Arc::clone(&value));
        let operation = Operation {
            operations: Arc::clone(&self.0),
            key: *key,
            value,
        };
        Some((joined, Some(operation)))
    }
}

impl<K: Eq + Hash, V> Drop for Operation<K, V> {
    fn drop(&mut self) {
        let mut operations = lock(&self.operations);
        let current = operations.get(&self.key);
        if current.is_some_and(|current| Arc::ptr_eq(current, &self.value)) {
            operations.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_share_an_operation_until_its_owner_drops_it() {
        let inflight = Inflight::<u8, u8>::default();
        let join = |new| inflight.join(&1, || new, |value| Some(**value)).unwrap();
        let (first, operation) = join(10);
        let (second, joined) = join(20);
        assert_eq!((first, second), (10, 10));
        assert!(joined.is_none());
        drop(operation);
        assert_eq!(inflight.get(&1), None);
        assert_eq!(join(30).0, 30);
    }

    #[test]
    fn a_declined_operation_is_replaced_and_its_end_leaves_the_new_one() {
        let inflight = Inflight::<u8, u8>::default();
        let join = |new, declined| {
            let accepts = |value: &Arc<u8>| (**value != declined).then_some(**value);
            inflight.join(&1, || new, accepts)
        };
        let old = join(10, 0);
        let new = join(20, 10);
        drop(old);
        assert_eq!(inflight.get(&1).as_deref(), Some(&20));
        assert!(join(30, 20).is_some_and(|(value, _)| value == 30));
        drop(new);
        assert!(join(40, 40).is_none());
    }
}
