//! A budget that calls share, with a fair queue.

mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tracing::info;

use self::queue::{Queue, Ticket};
use crate::{Call, TRACE};

/// The largest reservation of memory that is granted without being counted, in bytes.
pub const UNCOUNTED: u64 = 64 * 1024;
/// The longest time that a call waits for its turn.
const WAIT: Duration = Duration::from_secs(30);

/// A number of bytes, or of other things, that calls share. Of the connections that wait, the one that holds the fewest
/// permits is served first; connections with equally many take turns.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    what: &'static str,
    bytes: u64,
    /// The largest request that is granted without being counted.
    uncounted: u64,
    queue: Mutex<Queue>,
}

/// The error of a call for which nothing became free in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit of {what} is reached, and nothing became free within {} s; try again", WAIT.as_secs())]
pub struct Full {
    what: &'static str,
}

impl Budget {
    /// Creates a budget of `bytes` of memory, named `what` in errors.
    pub fn memory(what: &'static str, bytes: u64) -> Self {
        Self::new(what, bytes, UNCOUNTED)
    }

    /// Creates a budget of `count` other things, named `what` in errors.
    pub fn count(what: &'static str, count: u64) -> Self {
        Self::new(what, count, 0)
    }

    fn new(what: &'static str, bytes: u64, uncounted: u64) -> Self {
        Self(Arc::new(Pool {
            what,
            bytes,
            uncounted,
            queue: Mutex::new(Queue::new(bytes)),
        }))
    }

    /// The size of the budget in bytes, granted or free.
    pub fn total(&self) -> u64 {
        self.0.bytes
    }

    /// The permits that are granted, in bytes or other things.
    pub fn used(&self) -> u64 {
        self.0.bytes.saturating_sub(self.0.queue.lock().free)
    }

    /// The number of connections that wait.
    pub fn waiting(&self) -> usize {
        self.0.queue.lock().waiting()
    }

    /// Waits until `bytes` are free and takes them, all at once. A request larger than the budget gets all
    /// of it.
    pub async fn reserve(&self, bytes: u64) -> Result<Permit, Full> {
        if bytes <= self.0.uncounted {
            return Ok(Permit::default());
        }
        let bytes = bytes.min(self.0.bytes);
        let call = Call::current();
        if let Some(permit) = self.take(bytes, &call) {
            return Ok(permit);
        }
        let client = call.client().id();
        let (send, waiter) = oneshot::channel();
        // The new waiter is served at once if those in front of the queue hold more permits.
        let ticket = self.0.change(|queue| queue.wait(client, bytes, send));
        let mut queued = QueuedCall {
            pool: &self.0,
            ticket,
            bytes,
            waiter,
        };
        let began = Instant::now();
        let served = timeout(WAIT, &mut queued.waiter).await;
        let waited = began.elapsed();
        info!(target: TRACE, limit = self.0.what, requested = bytes, ?waited, "waited for a limit");
        match served {
            Ok(Ok(())) => Ok(self.0.grant(bytes, &call)),
            _ => Err(Full { what: self.0.what }),
        }
    }

    /// Takes `bytes` if they are free and no call waits.
    pub fn try_reserve(&self, bytes: u64) -> Option<Permit> {
        if bytes <= self.0.uncounted {
            return Some(Permit::default());
        }
        self.take(bytes, &Call::current())
    }

    fn take(&self, bytes: u64, call: &Call) -> Option<Permit> {
        let mut queue = self.0.queue.lock();
        let free = queue.is_free(bytes);
        if free {
            queue.take(call.client().id(), bytes);
        }
        drop(queue);
        free.then(|| self.0.grant(bytes, call))
    }

    /// Takes up to `most` bytes, and at most the free bytes divided by `divisor`, so that shares shrink as the budget
    /// fills. Never waits; takes nothing while calls wait.
    pub fn share(&self, most: u64, divisor: u64) -> Permit {
        let mut queue = self.0.queue.lock();
        let bytes = queue.share(most, divisor);
        drop(queue);
        if bytes == 0 {
            return Permit::default();
        }
        Permit(Some(Arc::new(Grant {
            pool: Arc::clone(&self.0),
            bytes: AtomicU64::new(bytes),
            owner: None,
        })))
    }
}

impl Pool {
    /// Creates a permit for bytes that were taken out of the queue.
    fn grant(self: &Arc<Self>, bytes: u64, call: &Call) -> Permit {
        let grant = Arc::new(Grant {
            pool: Arc::clone(self),
            bytes: AtomicU64::new(bytes),
            owner: Some(Owner {
                call: call.clone(),
                leaving: Mutex::new(false),
            }),
        });
        call.add(&grant);
        Permit(Some(grant))
    }

    /// Changes the queue, and then wakes the calls whose turn came.
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue.lock();
        let outcome = change(&mut queue);
        let mut served = queue.serve();
        drop(queue);
        while let Some((client, bytes, send)) = served.pop() {
            // A call that was cancelled meanwhile creates no permit that would return the bytes.
            if send.send(()).is_err() {
                let mut queue = self.queue.lock();
                queue.give_back(client, bytes);
                served.extend(queue.serve());
            }
        }
        outcome
    }
}

/// A call that waits for its turn. Dropping it leaves the queue.
struct QueuedCall<'a> {
    pool: &'a Arc<Pool>,
    ticket: Ticket,
    bytes: u64,
    waiter: oneshot::Receiver<()>,
}

impl Drop for QueuedCall<'_> {
    fn drop(&mut self) {
        // Closed first, so that no grant can arrive after the check.
        self.waiter.close();
        let unused = self.waiter.try_recv().is_ok();
        let (ticket, bytes) = (self.ticket, self.bytes);
        self.pool.change(|queue| {
            if !queue.forget(ticket) && unused {
                queue.give_back(ticket.client, bytes);
            }
        });
    }
}

/// A part of a budget, held until dropped. The default stands for bytes that are not counted.
#[derive(Debug, Default)]
pub struct Permit(Option<Arc<Grant>>);

#[derive(Debug)]
pub(crate) struct Grant {
    pool: Arc<Pool>,
    bytes: AtomicU64,
    /// None for a share, which belongs to no call.
    owner: Option<Owner>,
}

/// The owner of a permit.
#[derive(Debug)]
struct Owner {
    call: Call,
    /// True once the permit counts as given back.
    leaving: Mutex<bool>,
}

impl Permit {
    /// The bytes of this permit; 0 if they are not counted.
    pub fn bytes(&self) -> u64 {
        let bytes = self.0.as_ref().map(|grant| &grant.bytes);
        bytes.map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }

    /// Gives back all but `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        let Some(grant) = &self.0 else { return };
        let leaving = grant.owner.as_ref().map(|owner| owner.leaving.lock());
        // All bytes of such a permit have been counted as given back.
        if leaving.as_deref().is_some_and(|leaving| *leaving) {
            return;
        }
        grant.pool.change(|queue| {
            let held = grant.bytes.fetch_min(bytes, Ordering::Relaxed);
            queue.free += held.saturating_sub(bytes);
        });
    }

    /// Attaches this permit to `content`: it is held for as long as any part of the content is in
    /// memory.
    pub fn hold(self, content: Bytes) -> Bytes {
        struct PermitGuard(
            Bytes,
            #[expect(dead_code, reason = "dropped with the content")] Permit,
        );
        impl AsRef<[u8]> for PermitGuard {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        if self.0.is_none() {
            return content;
        }
        Bytes::from_owner(PermitGuard(content, self))
    }
}

impl Grant {
    /// Whether others wait for bytes of the same budget.
    pub(crate) fn is_wanted(&self) -> bool {
        self.owner.is_some() && self.pool.queue.lock().is_short()
    }

    /// Returns true if others wait for these bytes, which then count as given back.
    pub(crate) fn give_way(&self) -> bool {
        let Some(owner) = &self.owner else {
            return false;
        };
        let mut leaving = owner.leaving.lock();
        if !*leaving {
            let bytes = self.bytes.load(Ordering::Relaxed);
            *leaving = self.pool.queue.lock().leave(bytes);
        }
        *leaving
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        let client = self.owner.as_ref().map(|owner| {
            let client = owner.call.client();
            if !owner.call.is_detached() {
                client.credit().give_back();
            }
            (client.id(), *owner.leaving.lock())
        });
        self.pool.change(|queue| match client {
            None => queue.free += bytes,
            Some((client, leaving)) => {
                if leaving {
                    queue.leaving = queue.leaving.saturating_sub(bytes);
                }
                queue.give_back(client, bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests;
