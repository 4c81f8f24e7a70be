//! Connections of clients, their calls, and the permits that calls hold.

use std::{
    any::Any,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use crate::{budget::Grant, pace::Credit};

tokio::task_local! {
    static CURRENT: Call;
}

/// A connection of a client.
#[derive(Clone, Debug)]
pub struct Client(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    id: u64,
    credit: Mutex<Credit>,
}

impl Client {
    /// Creates a connection, whose slow calls have to give way after `grace`.
    pub fn new(grace: Duration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Connection {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            credit: Mutex::new(Credit::new(grace)),
        }))
    }

    /// Creates a call on this connection.
    pub fn call(&self) -> Call {
        self.new_call(false, None, None)
    }

    fn new_call(
        &self,
        detached: bool,
        near: Option<Arc<str>>,
        attached: Option<Attachment>,
    ) -> Call {
        Call(Arc::new(CallState {
            client: self.clone(),
            detached,
            near,
            grants: Mutex::default(),
            attached: Mutex::new(attached),
        }))
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn credit(&self) -> MutexGuard<'_, Credit> {
        self.0.credit.lock()
    }
}

/// A value attached to a call by code that uses this crate.
type Attachment = Arc<dyn Any + Send + Sync>;

/// A call of a client, with the permits that it holds.
#[derive(Clone, Debug)]
pub struct Call(Arc<CallState>);

#[derive(Debug)]
struct CallState {
    client: Client,
    detached: bool,
    near: Option<Arc<str>>,
    grants: Mutex<Vec<Weak<Grant>>>,
    attached: Mutex<Option<Attachment>>,
}

impl Call {
    /// Returns the call of the current task. A task outside any call gets a connection of its own,
    /// without a minimum pace.
    pub fn current() -> Self {
        CURRENT
            .try_with(Self::clone)
            .unwrap_or_else(|_| Client::new(Duration::MAX).call())
    }

    /// Attaches a value to the call of the current task, unless it has one. Work that the call detaches later shares
    /// the value.
    pub fn attach(value: Attachment) {
        let _ = CURRENT.try_with(|call| {
            call.0.attached.lock().get_or_insert(value);
        });
    }

    /// Returns the value attached to the call of the current task.
    pub fn attached() -> Option<Attachment> {
        let attached = CURRENT.try_with(|call| call.0.attached.lock().clone());
        attached.ok().flatten()
    }

    /// Runs `step` as part of this call.
    pub fn run<T>(&self, step: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), step)
    }

    /// Runs `work` as part of this call.
    pub fn scope<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), work)
    }

    /// Returns a call of the same connection for work that continues when this call ends. Its permits
    /// are queued with those of the connection, but ending this call does not release them.
    #[must_use]
    pub fn detached(&self) -> Self {
        self.detached_near(self.0.near.clone())
    }

    /// Returns a detached call whose blobs are near to the node of this name, which had them last.
    #[must_use]
    pub fn near_to(&self, node: Arc<str>) -> Self {
        self.detached_near(Some(node))
    }

    fn detached_near(&self, near: Option<Arc<str>>) -> Self {
        let attached = self.0.attached.lock().clone();
        self.client().new_call(true, near, attached)
    }

    /// Returns the name of the node that has the blobs of the current task's call, if it is known. Work that the call
    /// detaches shares it.
    pub fn near() -> Option<Arc<str>> {
        CURRENT.try_with(|call| call.0.near.clone()).ok().flatten()
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.0.detached
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Whether the call holds permits.
    pub(crate) fn holds(&self) -> bool {
        self.grants(|grants| !grants.is_empty())
    }

    pub(crate) fn add(&self, grant: &Arc<Grant>) {
        if !self.is_detached() {
            self.client().credit().take();
        }
        self.grants(|grants| grants.push(Arc::downgrade(grant)));
    }

    /// Whether the predicate is true for one of the permits; later ones are not asked.
    pub(crate) fn any(&self, is: fn(&Grant) -> bool) -> bool {
        self.grants(|grants| {
            let mut grants = grants.iter().filter_map(Weak::upgrade);
            grants.any(|grant| is(&grant))
        })
    }

    /// Runs `visit` on the permits that are still held.
    fn grants<T>(&self, visit: impl FnOnce(&mut Vec<Weak<Grant>>) -> T) -> T {
        let mut grants = self.0.grants.lock();
        grants.retain(|grant| grant.strong_count() > 0);
        visit(&mut grants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_detached_from_a_call_shares_its_attached_value() {
        let attached = || Call::attached().and_then(|value| value.downcast_ref::<u8>().copied());
        let attach = |value: u8| Call::attach(Arc::new(value));
        attach(1);
        assert_eq!(attached(), None, "outside of calls");
        let call = Client::new(Duration::MAX).call();
        let detached = call.scope(async {
            attach(2);
            attach(3);
            assert_eq!(attached(), Some(2));
            Call::current().detached()
        });
        let detached = detached.await;
        drop(call);
        assert_eq!(detached.scope(async { attached() }).await, Some(2));
    }

    #[tokio::test]
    async fn work_detached_from_a_call_is_near_to_the_same_node() {
        assert_eq!(Call::near(), None);
        let call = Call::current().near_to("node-1".into());
        let detached = call.scope(async { Call::current().detached() }).await;
        let near = detached.scope(async { Call::near() }).await;
        assert_eq!(near.as_deref(), Some("node-1"));
    }
}
