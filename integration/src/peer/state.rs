//! What the peer holds and has seen.

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

/// What the peer holds and has seen, for a condition to look at.
#[derive(Clone, Debug)]
pub struct Seen {
    pub(super) blobs: HashMap<Key, Bytes>,
    pub(super) actions: HashMap<(String, Key), ActionResult>,
    /// Uploads that have not ended, by resource name.
    pub(super) partials: HashMap<String, BytesMut>,
    pub(super) faults: Faults,
    /// How often stalled calls were let go on.
    pub(super) releases: u64,
    calls: Vec<Call>,
}

impl Seen {
    /// The calls of a method, in the order in which they came.
    pub fn calls(&self, method: Method) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.method == method)
    }

    /// All calls, in the order in which they came.
    pub fn all_calls(&self) -> &[Call] {
        &self.calls
    }

    /// The content that it holds under that digest.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.content(&Key::of(digest))
    }

    /// How many blobs it holds.
    pub fn blobs(&self) -> usize {
        self.blobs.len()
    }

    /// The action result that it holds.
    pub fn action(&self, instance: &str, action: &Digest) -> Option<ActionResult> {
        let key = (instance.to_owned(), Key::of(action));
        self.actions.get(&key).cloned()
    }

    /// Content bytes sent, as they went over the wire.
    pub fn bytes_read(&self) -> u64 {
        self.calls.iter().map(|call| call.sent).sum()
    }

    /// Content bytes received, as they came over the wire.
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

/// What the peer holds, and whoever waits for it to change.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) offer: Offer,
    seen: watch::Sender<Seen>,
    next_call: AtomicU64,
}

impl Shared {
    pub(super) fn new(offer: Offer) -> Self {
        let seen = Seen {
            blobs: HashMap::new(),
            actions: HashMap::new(),
            partials: HashMap::new(),
            faults: Faults::new(offer.seed),
            releases: 0,
            calls: Vec::new(),
        };
        Self {
            offer,
            seen: watch::Sender::new(seen),
            next_call: AtomicU64::new(0),
        }
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.borrow())
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let mut result = None;
        self.seen.send_modify(|seen| result = Some(change(seen)));
        result.expect("send_modify calls it")
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Waits until stalled calls are let go on more often than `before`.
    pub(super) async fn stall(&self, before: u64) {
        let mut seen = self.subscribe();
        let released = seen.wait_for(|seen| seen.releases > before).await;
        released.expect("the peer outlives its calls");
    }

    /// Notes a call and does to it what can be done before it is looked at.
    pub(super) async fn begin(
        self: &Arc<Self>,
        method: Method,
        headers: &MetadataMap,
        describe: impl FnOnce(&mut Call),
    ) -> Result<Running, Status> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let mut call = Call::new(id, method, headers);
        describe(&mut call);
        let (fault, releases) = self.change(|seen| {
            seen.calls.push(call);
            (seen.faults.next(method), seen.releases)
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

/// A call that is being answered. Its end is noted when this value goes.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    id: u64,
    pub(super) fault: Option<Fault>,
    /// How often stalled calls had been let go on when it came: whoever has seen the call can
    /// release it, also before it has got to where it stalls.
    pub(super) releases: u64,
    ended: Code,
}

impl Running {
    /// Changes what is known of the call.
    pub(super) fn note(&self, note: impl FnOnce(&mut Call)) {
        self.shared.change(|seen| {
            // Only calls that ended are forgotten.
            let mut latest_first = seen.calls.iter_mut().rev();
            if let Some(call) = latest_first.find(|call| call.id == self.id) {
                note(call);
            }
        });
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.note(|call| call.sent += u64::try_from(bytes).expect("a size in memory"));
    }

    pub(super) fn received(&self, bytes: usize) {
        self.note(|call| call.received += u64::try_from(bytes).expect("a size in memory"));
    }

    /// Notes how the call ends from here on.
    pub(super) fn ends(&mut self, code: Code) {
        self.ended = code;
    }

    /// Ends the call with its answer.
    pub(super) fn end<T>(mut self, result: Result<T, Status>) -> Result<T, Status> {
        self.ends(result.as_ref().err().map_or(Code::Ok, Status::code));
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.ended;
        self.note(|call| call.ended = Some(ended));
    }
}
