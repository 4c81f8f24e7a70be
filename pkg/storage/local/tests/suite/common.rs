//! Stores, blobs and uploads shared by the tests of the local store.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, stream};
use gorego_storage::{
    Blob, BlobStore, BlobStream, Candidate, Digest, DigestFunction, EntryId, Error, Evictable, Put,
    Result, Resume, UploadId,
};
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};
use reapi::v2::ActionResult;

pub const GIB: u64 = 1 << 30;

/// The room of the two folders above a single blob.
pub const FOLDERS: u64 = 2 * 4096;

/// Counts the folders below this one.
pub fn folders(dir: &Path, below: &str) -> usize {
    let entries = std::fs::read_dir(dir.join(below)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.is_dir())
        .map(|path| 1 + folders(&path, ""))
        .sum()
}

pub fn options(dir: &Path) -> LocalOptions {
    LocalOptions {
        dir: dir.to_owned(),
        max_bytes: GIB,
        wake_bytes: GIB,
        lease: Duration::from_hours(1),
        upload_lease: Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    }
}

pub async fn open(dir: &Path) -> Arc<LocalStore> {
    open_with(options(dir)).await
}

pub async fn open_with(options: LocalOptions) -> Arc<LocalStore> {
    Arc::new(LocalStore::open(options).await.unwrap())
}

/// Waits until the background scan is done.
pub async fn scanned(store: &LocalStore) {
    until(|| !store.usage().scanning).await;
}

/// Waits for a condition that other threads bring about.
pub async fn until(mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(Duration::from_mins(1), async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the condition never came true");
}

pub fn content(seed: u8, len: usize) -> Bytes {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u8::try_from(state >> 24).unwrap()
    };
    (0..len).map(|_| next()).collect::<Vec<_>>().into()
}

pub async fn put(store: &LocalStore, content: &Bytes) -> Digest {
    let digest = DigestFunction::Sha256.digest(content);
    let put = store
        .put(&digest, Blob::Bytes(content.clone()))
        .await
        .unwrap();
    assert_eq!(put, Put::Stored);
    digest
}

pub async fn read(store: &LocalStore, digest: &Digest) -> Result<Bytes> {
    store.get(digest, 0).await?.into_bytes().await
}

pub fn path(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    dir.join("cas").join(&hex[..2]).join(&hex[2..4]).join(hex)
}

/// An upload that breaks off after these pieces.
pub fn broken(upload: &str, offset: u64, pieces: &[Bytes]) -> Blob {
    let end = Err(Error::Unavailable("the client went away".into()));
    let items: Vec<_> = pieces.iter().cloned().map(Ok).chain([end]).collect();
    let resume = Some(Resume {
        upload: UploadId::new(upload),
        offset,
    });
    Blob::Stream(BlobStream {
        chunks: Box::pin(stream::iter(items)),
        resume,
        verified: None,
    })
}

/// An upload that comes to its end.
pub fn whole(upload: &str, offset: u64, content: &Bytes) -> Blob {
    let pieces: Vec<_> = content
        .chunks(100_000)
        .map(|c| Ok(Bytes::copy_from_slice(c)))
        .collect();
    let resume = Some(Resume {
        upload: UploadId::new(upload),
        offset,
    });
    Blob::Stream(BlobStream {
        chunks: Box::pin(stream::iter(pieces)),
        resume,
        verified: None,
    })
}

/// Every candidate that the janitor sees.
pub fn candidates(store: &LocalStore) -> Vec<Candidate> {
    let mut seen = Vec::new();
    store.visit(&mut |candidate| seen.push(candidate));
    seen.sort_by_key(|candidate| (candidate.last_use, candidate.entry));
    seen
}

pub fn candidate(store: &LocalStore, bytes: u64) -> Candidate {
    candidates(store)
        .into_iter()
        .find(|c| c.bytes == bytes)
        .expect("no entry of that size")
}

pub fn is_waiting<T>(future: std::pin::Pin<&mut (impl Future<Output = T> + ?Sized)>) -> bool {
    future.now_or_never().is_none()
}

pub fn set_atime(path: &Path, ms: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_millis(ms);
    let file = std::fs::File::open(path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_accessed(time))
        .unwrap();
}

pub fn atime_ms(path: &Path) -> u64 {
    let time = std::fs::metadata(path).unwrap().accessed().unwrap();
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Changes one byte of a blob's file, keeping its size and times. In one step, since the scan removes
/// folders that it finds empty.
pub fn damage(path: &Path) {
    let times = std::fs::metadata(path).unwrap();
    let mut content = std::fs::read(path).unwrap();
    content[0] ^= 1;
    let damaged = path.with_extension("damaged");
    std::fs::write(&damaged, content).unwrap();
    let set = std::fs::FileTimes::new()
        .set_accessed(times.accessed().unwrap())
        .set_modified(times.modified().unwrap());
    let file = std::fs::File::options().write(true).open(&damaged).unwrap();
    file.set_times(set).unwrap();
    std::fs::rename(&damaged, path).unwrap();
}

pub const fn no_entry() -> EntryId {
    EntryId(u64::MAX)
}

pub async fn put_result(store: &LocalStore, instance: &str, action: &Digest, exit_code: i32) {
    let result = ActionResult {
        exit_code,
        ..Default::default()
    };
    gorego_storage::ActionCache::put(store, instance, action, result)
        .await
        .unwrap();
}

pub async fn get_result(store: &LocalStore, instance: &str, action: &Digest) -> Option<i32> {
    let result = gorego_storage::ActionCacheExt::find(store, instance, action)
        .await
        .unwrap();
    result.map(|result| result.exit_code)
}

/// Finds a file below a folder.
pub fn find_file(dir: &Path) -> Option<std::path::PathBuf> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find_map(|path| {
            if path.is_dir() {
                find_file(&path)
            } else {
                Some(path)
            }
        })
}

/// The present, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_millis()).unwrap()
}
