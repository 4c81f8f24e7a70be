//! The peer's state: blobs, action results, faults and recorded calls.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use reapi::v2::{ActionResult, Digest};
use tokio::sync::watch;
use tonic::{Code, Status, metadata::MetadataMap};

use super::{
    Call, Fault, Method, Offer,
    blob::Key,
    fault::{Faults, injected},
};

/// The blobs, action results and recorded calls of the peer.
#[derive(Clone, Debug)]
pub struct PeerState {
    pub(super) blobs: HashMap<Key, Bytes>,
    pub(super) actions: HashMap<(String, Key), ActionResult>,
    /// Partial uploads, by resource name.
    pub(super) partials: HashMap<String, BytesMut>,
    pub(super) faults: Faults,
    /// The number of releases of stalled calls.
    pub(super) releases: u64,
    calls: Vec<Call>,
}

impl PeerState {
    /// Returns the calls of a method, in the order of arrival.
    pub fn calls(&self, method: Method) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.method == method)
    }

    /// Returns all calls, in the order of arrival.
    pub fn all_calls(&self) -> &[Call] {
        &self.calls
    }

    /// Returns the content stored under a digest.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.content(&Key::of(digest))
    }

    /// Returns the number of stored blobs.
    pub fn blobs(&self) -> usize {
        self.blobs.len()
    }

    /// Returns a stored action result.
    pub fn action(&self, instance: &str, action: &Digest) -> Option<ActionResult> {
        let key = (instance.to_owned(), Key::of(action));
        self.actions.get(&key).cloned()
    }

    /// Returns the content bytes sent, compressed ones as such.
    pub fn bytes_read(&self) -> u64 {
        self.calls.iter().map(|call| call.sent).sum()
    }

    /// Returns the content bytes received, compressed ones as such.
    pub fn bytes_written(&self) -> u64 {
        self.calls.iter().map(|call| call.received).sum()
    }

    pub(super) fn content(&self, key: &Key) -> Option<Bytes> {
        if key.is_empty() {
            return Some(Bytes::new());
        }
        self.blobs.get(key).cloned()
    }

    pub(super) fn forget_calls(&mut self) {
        self.calls.retain(|call| call.ended.is_none());
    }
}

/// All services of the peer.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<Shared>);

impl Deref for Service {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}

/// The state, shared by the services and by tests that wait for changes.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) offer: Offer,
    state: watch::Sender<PeerState>,
    next_call: AtomicU64,
}

impl Shared {
    pub(super) fn new(offer: Offer) -> Self {
        let state = PeerState {
            blobs: HashMap::new(),
            actions: HashMap::new(),
            partials: HashMap::new(),
            faults: Faults::new(offer.seed),
            releases: 0,
            calls: Vec::new(),
        };
        Self {
            offer,
            state: watch::Sender::new(state),
            next_call: AtomicU64::new(0),
        }
    }

    pub(super) fn inspect<T>(&self, inspect: impl FnOnce(&PeerState) -> T) -> T {
        inspect(&self.state.borrow())
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut PeerState) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.expect("send_modify calls it")
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<PeerState> {
        self.state.subscribe()
    }

    /// Waits until stalled calls have been released more often than `before`.
    pub(super) async fn stall(&self, before: u64) {
        let mut state = self.subscribe();
        let released = state.wait_for(|state| state.releases > before).await;
        released.expect("the peer outlives its calls");
    }

    /// Records a call and applies the faults that happen at its beginning.
    pub(super) async fn begin(
        self: &Arc<Self>,
        method: Method,
        headers: &MetadataMap,
        describe: impl FnOnce(&mut Call),
    ) -> Result<Running, Status> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let mut call = Call::new(id, method, headers);
        describe(&mut call);
        let (fault, releases) = self.change(|state| {
            state.calls.push(call);
            (state.faults.next(method), state.releases)
        });
        let running = Running {
            shared: Arc::clone(self),
            id,
            fault,
            releases,
            ended: Code::Cancelled,
        };
        match fault {
            Some(Fault::Answer(code)) => running.end(Err(injected(code))),
            Some(Fault::Stall) => {
                self.stall(releases).await;
                Ok(running)
            }
            _ => Ok(running),
        }
    }
}

/// A call in progress. Dropping it records the status of the call.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    id: u64,
    pub(super) fault: Option<Fault>,
    /// The number of releases when the call arrived, so that a test that saw the call can release it
    /// even before it stalls.
    pub(super) releases: u64,
    ended: Code,
}

impl Running {
    /// Changes the record of the call.
    pub(super) fn record(&self, change: impl FnOnce(&mut Call)) {
        self.shared.change(|state| {
            let mut latest_first = state.calls.iter_mut().rev();
            if let Some(call) = latest_first.find(|call| call.id == self.id) {
                change(call);
            }
        });
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.record(|call| call.sent += u64::try_from(bytes).expect("a size in memory"));
    }

    pub(super) fn received(&self, bytes: usize) {
        self.record(|call| call.received += u64::try_from(bytes).expect("a size in memory"));
    }

    /// Sets the status to record when the call ends.
    pub(super) fn ends(&mut self, code: Code) {
        self.ended = code;
    }

    /// Ends the call with its response.
    pub(super) fn end<T>(mut self, result: Result<T, Status>) -> Result<T, Status> {
        self.ends(result.as_ref().err().map_or(Code::Ok, Status::code));
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.ended;
        self.record(|call| call.ended = Some(ended));
    }
}
