//! Action results that cost a trip to tell the size of.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{ActionCache, Digest, Result};
use prost::Message;
use reapi::v2::ActionResult;
use tokio::time::Instant;

/// For how long it is held: a caller asks for the result right after its size.
const HELD: Duration = Duration::from_secs(10);

/// What holding takes besides the result, in bytes.
const OVERHEAD: u64 = 1024;

/// An action cache over one that is far away: telling a result's size fetches it, and it is held for
/// whoever asks for it next.
pub struct Ahead<A: ?Sized> {
    results: Arc<A>,
    /// The most bytes that are held. Beyond that the oldest results are dropped, which costs a
    /// round trip each.
    capacity: u64,
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

/// A result, encoded, as what it takes in memory is bounded by that; or that there is none.
struct Found {
    result: Option<Bytes>,
    at: Instant,
    number: u64,
}

impl<A: ActionCache + ?Sized> Ahead<A> {
    /// Over `results`, whose own word on sizes is not asked for. Holds up to `capacity` bytes.
    pub fn new(results: Arc<A>, capacity: u64) -> Self {
        Self {
            results,
            capacity,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn put(&mut self, name: Name, result: Option<Bytes>, capacity: u64) {
        let now = Instant::now();
        while self.bytes > 0 && self.oldest().is_none_or(|at| at + HELD <= now) {
            self.forget_oldest();
        }
        self.came += 1;
        self.bytes += cost(result.as_ref());
        self.order.insert(self.came, name.clone());
        self.found.entry(name).or_default().push(Found {
            result,
            at: now,
            number: self.came,
        });
        while self.bytes > capacity {
            self.forget_oldest();
        }
    }

    /// When the oldest came.
    fn oldest(&self) -> Option<Instant> {
        let (_, name) = self.order.first_key_value()?;
        let found = self.found.get(name)?.first()?;
        Some(found.at)
    }

    fn forget_oldest(&mut self) {
        let Some((_, name)) = self.order.pop_first() else {
            self.bytes = 0;
            return;
        };
        let Some(all) = self.found.get_mut(&name) else {
            return;
        };
        if !all.is_empty() {
            self.bytes = self
                .bytes
                .saturating_sub(cost(all.remove(0).result.as_ref()));
        }
        if all.is_empty() {
            self.found.remove(&name);
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
        self.bytes = self.bytes.saturating_sub(cost(found.result.as_ref()));
        Some(found)
    }
}

/// What holding it takes, in bytes.
fn cost(result: Option<&Bytes>) -> u64 {
    OVERHEAD + result.map_or(0, Bytes::len) as u64
}

#[async_trait]
impl<A: ActionCache + ?Sized> ActionCache for Ahead<A> {
    async fn get(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let held = self.held().take(&(instance.to_owned(), *action));
        if let Some(found) = held
            && found.at.elapsed() < HELD
            && let Ok(result) = found.result.map(ActionResult::decode).transpose()
        {
            return Ok(result);
        }
        self.results.get(instance, action).await
    }

    async fn size(&self, instance: &str, action: &Digest) -> Result<u64> {
        let result = self.results.get(instance, action).await?;
        let encoded = result.map(|result| Bytes::from(result.encode_to_vec()));
        let size = encoded.as_ref().map_or(0, Bytes::len) as u64;
        self.held()
            .put((instance.to_owned(), *action), encoded, self.capacity);
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
    use gorego_storage::{DigestFunction, MemoryStore};
    use tokio::time::advance;

    use super::*;

    const CAPACITY: u64 = 64 << 20;

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
        (Arc::clone(&memory), Ahead::new(memory, CAPACITY))
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
        for number in 0..1000 {
            ahead.size("", &action(number % 2 * number)).await.unwrap();
        }
        {
            let held = ahead.held();
            assert!(held.bytes <= CAPACITY);
            let names = held.found.values().map(Vec::len).sum::<usize>();
            assert_eq!(held.order.len(), names);
        }
        advance(HELD).await;
        ahead.size("", &action(1)).await.unwrap();
        let held = ahead.held();
        assert_eq!((held.order.len(), held.found.len()), (1, 1));
        assert_eq!(held.bytes, OVERHEAD);
    }
}
