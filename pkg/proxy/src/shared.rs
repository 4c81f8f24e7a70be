//! Values by key that exist as long as one of their users.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

/// Values by key, each dropped with the last of its users.
#[derive(Debug)]
pub(crate) struct Shared<K, V>(Mutex<Values<K, V>>);

#[derive(Debug)]
struct Values<K, V> {
    by_key: HashMap<K, Weak<V>>,
    /// The number of keys from which on those of dropped values are removed.
    full: usize,
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Values {
            by_key: HashMap::new(),
            full: 0,
        }))
    }
}

impl<K: Clone + Eq + Hash, V> Shared<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0.lock().by_key.get(key).and_then(Weak::upgrade)
    }

    /// Joins the value of `key` or, if there is none that `join` accepts, a new one, which is returned, too. `None` if
    /// `join` does not accept the `new` value either.
    pub(crate) fn join<T>(
        &self,
        key: &K,
        new: impl FnOnce() -> V,
        join: impl Fn(&Arc<V>) -> Option<T>,
    ) -> Option<(T, Option<Arc<V>>)> {
        let Values { by_key, full } = &mut *self.0.lock();
        let value = by_key.get(key).and_then(Weak::upgrade);
        if let Some(joined) = value.as_ref().and_then(&join) {
            return Some((joined, None));
        }
        if by_key.len() >= *full {
            by_key.retain(|_, value| value.strong_count() > 0);
            *full = 2 * by_key.len() + 16;
        }
        let value = Arc::new(new());
        by_key.insert(key.clone(), Arc::downgrade(&value));
        Some((join(&value)?, Some(value)))
    }
}

impl<K: Clone + Eq + Hash, V: Default> Shared<K, V> {
    pub(crate) fn get_or_default(&self, key: &K) -> Arc<V> {
        let joined = self.join(key, V::default, |value| Some(Arc::clone(value)));
        joined.map_or_else(Arc::default, |(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_share_a_value_until_the_last_one_drops_it() {
        let shared = Shared::<u8, u8>::default();
        let join = |new| shared.join(&1, || new, |value| Some(**value)).unwrap();
        let (first, value) = join(10);
        let (second, joined) = join(20);
        assert_eq!((first, second), (10, 10));
        assert!(joined.is_none());
        drop(value);
        assert_eq!(shared.get(&1), None);
        assert_eq!(join(30).0, 30);
    }

    #[test]
    fn a_declined_value_is_replaced_and_its_end_leaves_the_new_one() {
        let shared = Shared::<u8, u8>::default();
        let join = |new, declined| {
            let accepts = |value: &Arc<u8>| (**value != declined).then_some(**value);
            shared.join(&1, || new, accepts)
        };
        let old = join(10, 0);
        let new = join(20, 10);
        drop(old);
        assert_eq!(shared.get(&1).as_deref(), Some(&20));
        assert!(join(30, 20).is_some_and(|(value, _)| value == 30));
        drop(new);
        assert!(join(40, 40).is_none());
    }

    #[test]
    fn keys_of_dropped_values_are_removed() {
        let shared = Shared::<u16, ()>::default();
        let kept: Vec<_> = (0..10).map(|key| shared.get_or_default(&key)).collect();
        (10..1000).for_each(|key| drop(shared.get_or_default(&key)));
        assert!(shared.0.lock().by_key.len() <= 2 * kept.len() + 16);
        assert!((0..10).all(|key| shared.get(&key).is_some()));
    }
}
