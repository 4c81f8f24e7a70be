//! A backing cache in memory that follows a script, and a proxy in front of it.

pub(crate) mod outage;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::Budget;
use gorego_proxy::{
    Backing as BackingCache, Memory, OnOutage, Options, Outbox, ProxyActions, ProxyStore,
};
use gorego_storage::{
    ActionCache, Blob, BlobStore, CachedResult, Digest, DigestFunction, Error, MemoryStore, Put,
    Result,
};
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};
use reapi::v2::ActionResult;
use tempfile::TempDir;
use tokio::{sync::watch, time::sleep};
use tonic::Code;

pub(crate) const GIB: u64 = 1 << 30;
/// The limit of pending writes, in bytes.
pub(crate) const JOURNAL: u64 = 16 << 20;
/// The size of the chunks that the backing cache returns.
pub(crate) const CHUNK: usize = 64 * 1024;

/// A backing cache in memory that follows a script.
#[derive(Default)]
pub(crate) struct Backing {
    pub(crate) memory: MemoryStore,
    script: Mutex<Script>,
    /// The most bytes of each blob that are returned until the release; none for all.
    gate: watch::Sender<Option<u64>>,
    pub(crate) gets: AtomicU64,
    pub(crate) finds: AtomicU64,
    pub(crate) puts: AtomicU64,
    /// The number of calls during outages.
    outages: AtomicU64,
    putting: AtomicU64,
    /// The highest number of puts of blobs at once.
    pub(crate) most_putting: AtomicU64,
}

/// The faults of the backing cache.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each goes wrong by itself")]
pub(crate) struct Script {
    /// Fails every call.
    pub(crate) down: bool,
    /// The number of puts that fail after their first chunk.
    pub(crate) failing_puts: u32,
    /// Corrupts content, and reports the mismatch at its end.
    pub(crate) corrupt: bool,
    /// Reports every blob as present, and reads no put.
    pub(crate) has_all: bool,
    /// Refuses puts and gets of these blobs, and puts of these actions' results, with a code.
    pub(crate) refused: Vec<(Digest, Code)>,
    /// Refuses with the page of a proxy in front.
    pub(crate) foreign: bool,
    /// Lacks this digest function.
    pub(crate) lacks: Option<DigestFunction>,
    /// Panics in a lookup of this blob together with others.
    pub(crate) panics: Option<Digest>,
    /// The duration of each call.
    pub(crate) latency: Duration,
    /// Accepts puts unverified, and drops the content.
    pub(crate) careless: bool,
    /// A blob whose lookup stores a result of [`outage::action`], as another client would.
    pub(crate) newer: Option<(Digest, ActionResult)>,
}

impl Backing {
    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    fn now(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    /// Withholds the content of each blob beyond `bytes`.
    pub(crate) fn hold_at(&self, bytes: u64) {
        self.gate.send_replace(Some(bytes));
    }

    pub(crate) fn release(&self) {
        self.gate.send_replace(None);
    }

    /// Stores a blob without a put.
    pub(crate) async fn has(&self, content: &Bytes) -> Digest {
        let digest = DigestFunction::Sha256.digest(content);
        let blob = Blob::Bytes(content.clone());
        BlobStore::put(&self.memory, &digest, blob).await.unwrap();
        digest
    }

    async fn up(&self) -> Result<()> {
        sleep(self.now().latency).await;
        if self.now().down {
            self.outages.fetch_add(1, SeqCst);
            return Err(Error::Unavailable("the backing cache is down".to_owned()));
        }
        Ok(())
    }

    fn takes(&self, digest: &Digest) -> Result<()> {
        let script = self.now();
        let lacks = script.lacks == Some(digest.function());
        let mut refused = script.refused.iter();
        match refused.find(|(refused, _)| refused == digest) {
            Some((_, Code::Unavailable)) => Err(Error::Unavailable("not now".to_owned())),
            Some((_, code)) => Err(refusal(*code, script.foreign)),
            None if lacks => Err(refusal(Code::InvalidArgument, false)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl BlobStore for Backing {
    fn outages(&self) -> u64 {
        self.outages.load(SeqCst)
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        self.finds.fetch_add(1, SeqCst);
        self.up().await?;
        if self.now().has_all {
            return Ok(Vec::new());
        }
        let panics = self.now().panics.filter(|bad| digests.contains(bad));
        assert!(panics.is_none() || digests.len() == 1, "{panics:?}");
        if let Some((blob, result)) = self.now().newer
            && digests.contains(&blob)
        {
            self.script(|script| script.newer = None);
            ActionCache::put(&self.memory, "", &outage::action(), result).await?;
        }
        let lacks = self.now().lacks;
        if digests
            .iter()
            .any(|digest| Some(digest.function()) == lacks)
        {
            return Err(refusal(Code::InvalidArgument, false));
        }
        self.memory.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.gets.fetch_add(1, SeqCst);
        self.up().await?;
        self.takes(digest)?;
        let whole = BlobStore::get(&self.memory, digest, offset)
            .await?
            .into_bytes()
            .await?;
        let wrong = self.now().corrupt.then(|| Error::Mismatch {
            expected: *digest,
            actual: "something else".to_owned(),
        });
        let pieces = whole.len().div_ceil(CHUNK);
        let gate = self.gate.subscribe();
        let chunks = stream::iter(0..pieces).then(move |at| {
            let (from, to) = (at * CHUNK, ((at + 1) * CHUNK).min(whole.len()));
            let (piece, mut gate, wrong) = (whole.slice(from..to), gate.clone(), wrong.clone());
            async move {
                let open = |most: &Option<u64>| most.is_none_or(|most| to as u64 <= most);
                gate.wait_for(open).await.expect("the backing cache lives");
                match wrong {
                    Some(wrong) if at + 1 == pieces => Err(wrong),
                    Some(_) => Ok(Bytes::from(vec![0xff; piece.len()])),
                    None => Ok(piece),
                }
            }
        });
        Ok(Blob::stream(chunks))
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        self.puts.fetch_add(1, SeqCst);
        let putting = self.putting.fetch_add(1, SeqCst) + 1;
        self.most_putting.fetch_max(putting, SeqCst);
        let up = self.up().await;
        self.putting.fetch_sub(1, SeqCst);
        up?;
        if self.now().has_all {
            return Ok(Put::Existed);
        }
        self.takes(digest)?;
        if self.now().careless {
            return blob.into_bytes().await.map(|_| Put::Stored);
        }
        let fails = {
            let mut script = self.script.lock().unwrap();
            let fails = script.failing_puts > 0;
            script.failing_puts = script.failing_puts.saturating_sub(1);
            fails
        };
        if fails {
            let _ = blob.into_chunks().next().await;
            return Err(Error::Unavailable("the put broke off".to_owned()));
        }
        BlobStore::put(&self.memory, digest, blob).await
    }
}

#[async_trait]
impl ActionCache for Backing {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        self.gets.fetch_add(1, SeqCst);
        self.up().await?;
        let got = ActionCache::get(&self.memory, instance, action, memory).await;
        // The response takes as long as the request.
        sleep(self.now().latency).await;
        got
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        self.puts.fetch_add(1, SeqCst);
        self.up().await?;
        self.takes(action)?;
        ActionCache::put(&self.memory, instance, action, result).await
    }
}

fn refusal(code: Code, foreign: bool) -> Error {
    Error::Refused {
        peer: "there".into(),
        code,
        message: "no".to_owned(),
        foreign,
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing").finish_non_exhaustive()
    }
}

/// A proxy, its two tiers, and the directory of the local one.
pub(crate) struct Proxy {
    pub(crate) store: ProxyStore,
    pub(crate) local: Arc<LocalStore>,
    pub(crate) backing: Arc<Backing>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) dir: TempDir,
}

pub(crate) fn options() -> Options {
    Options {
        existence_ttl: Duration::from_mins(5),
        read_only: false,
        local_first: false,
        prefetch: false,
        on_outage: OnOutage::Fail,
        outbox_retry: Duration::from_hours(1),
        memory: Memory::default(),
    }
}

impl Proxy {
    pub(crate) async fn new() -> Self {
        Self::with(options(), GIB).await
    }

    /// Creates a proxy with a local tier of `max_bytes`.
    pub(crate) async fn with(options: Options, max_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backing = Arc::new(Backing::default());
        let local = open(dir.path(), max_bytes).await;
        Self::of(dir, local, backing, options).await
    }

    async fn of(
        dir: TempDir,
        local: Arc<LocalStore>,
        backing: Arc<Backing>,
        options: Options,
    ) -> Self {
        let both = BackingCache {
            blobs: Arc::clone(&backing) as _,
            actions: Arc::clone(&backing) as _,
        };
        let outbox = Outbox::open(Arc::clone(&local), JOURNAL).await;
        let outbox = Arc::new(outbox.unwrap());
        let store = ProxyStore::new(Arc::clone(&local), both, Arc::clone(&outbox), options);
        Self {
            store,
            local,
            backing,
            outbox,
            dir,
        }
    }

    /// Closes the proxy, and opens another in the same directory.
    pub(crate) async fn restart(self, options: Options) -> Self {
        self.store.close().await;
        self.local.close().await.unwrap();
        let Self { dir, backing, .. } = self;
        drop((self.store, self.local, self.outbox));
        let local = open(dir.path(), GIB).await;
        Self::of(dir, local, backing, options).await
    }

    /// Opens another proxy in the same directory after a crash and `meanwhile`.
    pub(crate) async fn crash(self, options: Options, meanwhile: impl FnOnce()) -> Self {
        self.store.close().await;
        let Self { dir, backing, .. } = self;
        drop((self.store, self.local, self.outbox));
        meanwhile();
        let local = open(dir.path(), GIB).await;
        Self::of(dir, local, backing, options).await
    }

    pub(crate) fn actions(&self) -> ProxyActions {
        ProxyActions::new(&self.store)
    }

    pub(crate) async fn read(&self, digest: &Digest) -> Result<Bytes> {
        self.store.get(digest, 0).await?.into_bytes().await
    }
}

pub(crate) async fn open(dir: &Path, max_bytes: u64) -> Arc<LocalStore> {
    let options = LocalOptions {
        dir: dir.to_owned(),
        max_bytes,
        wake_bytes: max_bytes,
        lease: Duration::from_hours(1),
        upload_lease: Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    };
    Arc::new(LocalStore::open(options).await.unwrap())
}

pub(crate) fn content(seed: u8, len: usize) -> Bytes {
    gorego_storage_conformance::content(u64::from(seed), len)
}

pub(crate) fn sha256(content: &Bytes) -> Digest {
    DigestFunction::Sha256.digest(content)
}
