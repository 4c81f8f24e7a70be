//! Something that calls share, and a fair queue of those that wait for it.

mod queue;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::timeout};

use self::queue::{Queue, Ticket};
use crate::{Call, Client};

/// Up to this many bytes of memory are granted at once and not counted: a call takes as much by itself.
pub const UNCOUNTED: u64 = 64 * 1024;
/// The longest time that a call waits for its turn.
const WAIT: Duration = Duration::from_secs(30);

/// A number of bytes, or of other things, that calls share. Nothing is granted to a call whose connection holds more
/// permits than one that waits; of those with equally many, connections take turns.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    what: &'static str,
    bytes: u64,
    /// Up to this many are not counted.
    uncounted: u64,
    queue: Mutex<Queue>,
}

/// The error of a call that waited in vain: nothing became free in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {what} is in use, and none became free within {} s; try again", WAIT.as_secs())]
pub struct Full {
    what: &'static str,
}

impl Budget {
    /// Shares out bytes of memory, of which messages speak as `what`.
    pub fn memory(what: &'static str, bytes: u64) -> Self {
        Self::new(what, bytes, UNCOUNTED)
    }

    /// Shares out `count` of something else.
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

    /// The bytes that are shared, granted or not.
    pub fn total(&self) -> u64 {
        self.0.bytes
    }

    /// The number of connections that wait.
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting()
    }

    /// Waits until `bytes` are free and takes them, all at once. One that asks for more than there is
    /// gets everything.
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
        // It may be its turn at once, before others that hold more.
        let ticket = self.0.change(|queue| queue.wait(client, bytes, send));
        let waiting = Waiting {
            pool: &self.0,
            ticket,
            bytes,
            waiter,
        };
        waiting.granted(&call).await
    }

    /// Takes `bytes` if they are free and nobody waits.
    pub fn try_reserve(&self, bytes: u64) -> Option<Permit> {
        if bytes <= self.0.uncounted {
            return Some(Permit::default());
        }
        self.take(bytes, &Call::current())
    }

    fn take(&self, bytes: u64, call: &Call) -> Option<Permit> {
        let mut queue = self.0.lock();
        let free = queue.is_free(bytes);
        if free {
            queue.take(call.client().id(), bytes);
        }
        drop(queue);
        free.then(|| self.0.grant(bytes, call))
    }

    /// Takes up to `most` bytes, and at most one in `of` of the free bytes. Never waits; may take
    /// nothing. Shares shrink as the budget fills.
    pub fn share(&self, most: u64, of: u64) -> Permit {
        let mut queue = self.0.lock();
        let bytes = queue.share(most, of);
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
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit for bytes that were taken out of the queue.
    fn grant(self: &Arc<Self>, bytes: u64, call: &Call) -> Permit {
        let grant = Arc::new(Grant {
            pool: Arc::clone(self),
            bytes: AtomicU64::new(bytes),
            owner: Some(Owner {
                client: call.client().clone(),
                detached: call.is_detached(),
                leaving: Mutex::new(false),
            }),
        });
        call.add(&grant);
        Permit(Some(grant))
    }

    /// Changes the queue, and then wakes those whose turn came.
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.lock();
        let outcome = change(&mut queue);
        let mut served = queue.serve();
        drop(queue);
        while let Some((client, bytes, send)) = served.pop() {
            // A call that was given up meanwhile has nothing to drop its part.
            if send.send(()).is_err() {
                let mut queue = self.lock();
                queue.give_back(client, bytes);
                served.extend(queue.serve());
            }
        }
        outcome
    }
}

/// A call that waits for its turn, until this is dropped.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    ticket: Ticket,
    bytes: u64,
    waiter: oneshot::Receiver<()>,
}

impl Waiting<'_> {
    async fn granted(mut self, call: &Call) -> Result<Permit, Full> {
        let granted = timeout(WAIT, &mut self.waiter).await;
        if !matches!(granted, Ok(Ok(()))) {
            return Err(Full {
                what: self.pool.what,
            });
        }
        Ok(self.pool.grant(self.bytes, call))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // After this nothing is sent any more, so it is known whether anything was.
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

/// A part of a budget, until dropped. The default is for what is not counted.
#[derive(Debug, Default)]
pub struct Permit(Option<Arc<Grant>>);

#[derive(Debug)]
pub(crate) struct Grant {
    pool: Arc<Pool>,
    bytes: AtomicU64,
    /// None for a share, which nobody waits for.
    owner: Option<Owner>,
}

/// The connection that a permit belongs to.
#[derive(Debug)]
struct Owner {
    client: Client,
    /// True for work that goes on when its call ends.
    detached: bool,
    /// True once the permit counts as given back.
    leaving: Mutex<bool>,
}

impl Owner {
    fn leaving(&self) -> MutexGuard<'_, bool> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The bytes that it stands for; 0 if they are not counted.
    pub fn bytes(&self) -> u64 {
        let bytes = self.0.as_ref().map(|grant| &grant.bytes);
        bytes.map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }

    /// Gives back all but `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        if let Some(grant) = &self.0 {
            grant.shrink(bytes);
        }
    }

    /// Attaches this permit to `content`: it is held for as long as any part of the content is in
    /// memory.
    pub fn hold(self, content: Bytes) -> Bytes {
        struct Held(
            Bytes,
            #[expect(dead_code, reason = "dropped with the content")] Permit,
        );
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        if self.0.is_none() {
            return content;
        }
        Bytes::from_owner(Held(content, self))
    }
}

impl Grant {
    /// Whether others wait for bytes of the same budget.
    pub(crate) fn is_wanted(&self) -> bool {
        self.owner.is_some() && self.pool.lock().is_short()
    }

    /// Whether others wait for these bytes; if so, they count as given back from now on.
    pub(crate) fn give_way(&self) -> bool {
        let Some(owner) = &self.owner else {
            return false;
        };
        let mut leaving = owner.leaving();
        if !*leaving {
            let bytes = self.bytes.load(Ordering::Relaxed);
            *leaving = self.pool.lock().leave(bytes);
        }
        *leaving
    }

    fn shrink(&self, to: u64) {
        let leaving = self.owner.as_ref().map(Owner::leaving);
        // What leaves has been promised as a whole.
        if leaving.as_deref().is_some_and(|leaving| *leaving) {
            return;
        }
        self.pool.change(|queue| {
            let bytes = self.bytes.fetch_min(to, Ordering::Relaxed);
            queue.add(bytes.saturating_sub(to));
        });
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        let client = self.owner.as_ref().map(|owner| {
            if !owner.detached {
                owner.client.credit().give_back();
            }
            (owner.client.id(), *owner.leaving())
        });
        self.pool.change(|queue| match client {
            None => queue.add(bytes),
            Some((client, leaving)) => {
                if leaving {
                    queue.left(bytes);
                }
                queue.give_back(client, bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests;
