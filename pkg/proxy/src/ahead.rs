//! Action results that cost a trip to tell the size of.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use gorego_storage::{ActionCache, Digest, Result};
use prost::Message;
use reapi::v2::ActionResult;
use tokio::time::Instant;

/// How much is held at most, encoded, in bytes. Beyond that the oldest go, which costs a trip.
const CAPACITY: u64 = 64 << 20;

/// For how long it is held: a caller asks for the result right after its size.
const HELD: Duration = Duration::from_secs(10);

/// What holding takes besides the result, in bytes.
const OVERHEAD: u64 = 1024;

/// An action cache over one that is far away: telling a result's size fetches it, and it is held for
/// whoever asks for it next.
pub struct Ahead<A: ?Sized> {
    results: Arc<A>,
    held: Mutex<Held>,
}

type Name = (String, Digest);

#[derive(Default)]
struct Held {
    found: HashMap<Name, Vec<Found>>,
    /// In the order in which they came.
    order: BTreeMap<u64, Name>,
    came: u64,
    bytes: u64,
}

/// A result, or that there is none.
struct Found {
    result: Option<ActionResult>,
    size: u64,
    at: Instant,
    number: u64,
}

impl<A: ActionCache + ?Sized> Ahead<A> {
    /// Over `results`, whose own word on sizes is not asked for.
    pub fn new(results: Arc<A>) -> Self {
        Self {
            results,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn put(&mut self, name: Name, result: Option<ActionResult>, size: u64) {
        self.came += 1;
        self.bytes += size + OVERHEAD;
        self.order.insert(self.came, name.clone());
        self.found.entry(name).or_default().push(Found {
            result,
            size,
            at: Instant::now(),
            number: self.came,
        });
        while self.bytes > CAPACITY {
            let oldest = self.order.first_key_value();
            let Some(oldest) = oldest.map(|(_, name)| name.clone()) else {
                return;
            };
            self.take(&oldest);
        }
    }

    /// The newest by that name.
    fn take(&mut self, name: &Name) -> Option<Found> {
        let all = self.found.get_mut(name)?;
        let found = all.pop()?;
        if all.is_empty() {
            self.found.remove(name);
        }
        self.order.remove(&found.number);
        self.bytes = self.bytes.saturating_sub(found.size + OVERHEAD);
        Some(found)
    }
}

#[async_trait]
impl<A: ActionCache + ?Sized> ActionCache for Ahead<A> {
    async fn get(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let held = self.held().take(&(instance.to_owned(), *action));
        match held {
            Some(found) if found.at.elapsed() < HELD => Ok(found.result),
            _ => self.results.get(instance, action).await,
        }
    }

    async fn size(&self, instance: &str, action: &Digest) -> Result<u64> {
        let result = self.results.get(instance, action).await?;
        let size = result.as_ref().map_or(0, Message::encoded_len) as u64;
        let name = (instance.to_owned(), *action);
        self.held().put(name, result, size);
        Ok(size)
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        self.results.put(instance, action, result).await
    }
}

impl<A: fmt::Debug + ?Sized> fmt::Debug for Ahead<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ahead").field(&&*self.results).finish()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use gorego_storage::{DigestFunction, MemoryStore};
    use tokio::time::advance;

    use super::*;

    fn action(number: u64) -> Digest {
        DigestFunction::Sha256.digest(&number.to_le_bytes())
    }

    fn result(len: usize) -> ActionResult {
        ActionResult {
            stdout_raw: Bytes::from(vec![1; len]),
            ..ActionResult::default()
        }
    }

    async fn ahead(len: usize) -> (Arc<MemoryStore>, Ahead<MemoryStore>) {
        let memory = Arc::new(MemoryStore::default());
        let put = ActionCache::put(&*memory, "", &action(0), result(len)).await;
        put.unwrap();
        (Arc::clone(&memory), Ahead::new(memory))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_looked_at_is_given_once_and_not_for_long() {
        let (memory, ahead) = ahead(10).await;
        for (wait, expected) in [(Duration::ZERO, 10), (HELD, 20)] {
            assert!(ahead.size("", &action(0)).await.unwrap() >= 10);
            let put = ActionCache::put(&*memory, "", &action(0), result(20)).await;
            put.unwrap();
            advance(wait).await;
            let got = ahead.get("", &action(0)).await.unwrap();
            assert_eq!(got, Some(result(expected)));
            let got = ahead.get("", &action(0)).await.unwrap();
            assert_eq!(got, Some(result(20)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_bounded() {
        let (_memory, ahead) = ahead(1 << 20).await;
        for number in 0..100_000 {
            ahead.size("", &action(number % 2 * number)).await.unwrap();
        }
        let held = ahead.held();
        assert!(held.bytes <= CAPACITY);
        let names = held.found.values().map(Vec::len).sum::<usize>();
        assert_eq!(held.order.len(), names);
    }
}
