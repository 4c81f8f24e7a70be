use bytes::Bytes;
use gorego_storage::{Blob, DigestFunction};
use gorego_storage_local::{LocalOptions, SyncMode};
use tempfile::TempDir;

use super::*;

const MAX: u64 = 1 << 30;

async fn open(dir: &TempDir) -> Outbox {
    let options = LocalOptions {
        dir: dir.path().to_owned(),
        max_bytes: MAX,
        wake_bytes: MAX,
        lease: Duration::ZERO,
        upload_lease: Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::Full,
        scrub_period: None,
        pieces: None,
    };
    let local = LocalStore::open(options).await.unwrap();
    Outbox::open(Arc::new(local), MAX).await.unwrap()
}

async fn add(outbox: &Outbox) -> Digest {
    let content = Bytes::from_static(b"content");
    let digest = DigestFunction::Sha256.digest(&content);
    let put = outbox.local.put(&digest, Blob::Bytes(content));
    outbox.add_blobs(vec![digest], put).await.unwrap();
    digest
}

fn entries(outbox: &Outbox) -> u64 {
    outbox.depth().borrow().entries
}

#[tokio::test]
async fn a_blob_written_again_stays_pending_after_the_outcome_of_its_earlier_entry() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&dir).await;
    let digest = add(&outbox).await;
    let first = outbox.queue.lock().first(0..u64::MAX, 2);
    add(&outbox).await;
    assert_eq!(entries(&outbox), 1);
    let gone = Err(ReplayError::from(Error::NotFound(digest)));
    let recorded = outbox.record_outcome(first[0].0, gone, Duration::ZERO);
    recorded.await.unwrap();
    assert_eq!(entries(&outbox), 1);
    let second = outbox.queue.lock().first(0..u64::MAX, 2);
    let recorded = outbox.record_outcome(second[0].0, Ok(()), Duration::ZERO);
    recorded.await.unwrap();
    assert_eq!(*outbox.depth().borrow(), Depth::default());
    assert_eq!(outbox.local.outbox_names().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_result_refused_by_the_local_tier_is_not_pending() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&dir).await;
    let action = DigestFunction::Sha256.digest(b"action");
    let store = async { Err(Error::Unavailable("no".to_owned())) };
    let result = ActionResult::default();
    let added = outbox
        .add_result(&(String::new(), action), result, None, store)
        .await;
    added.unwrap_err();
    assert_eq!(*outbox.depth().borrow(), Depth::default());
    assert_eq!(outbox.local.outbox_names().await.unwrap(), [""; 0]);
}

#[test]
fn file_names_identify_pending_writes() {
    for function in DigestFunction::ALL {
        let digest = function.digest(b"x");
        for key in [WriteKey::Blob(digest), WriteKey::result("", &digest)] {
            let name = file_name(7, &key);
            assert_eq!(entry::parse(&name), Some((7, key)));
            assert_eq!(entry::parse(&name[1..]), None);
            assert_eq!(entry::parse(&format!("{name}-")), None);
        }
    }
}
