use bytes::Bytes;
use gorego_storage::{Blob, BlobStore as _, DigestFunction, Evictable as _};
use gorego_storage_local::{LocalOptions, SyncMode};
use tempfile::TempDir;

use super::*;

const GIB: u64 = 1 << 30;

async fn open(dir: &TempDir) -> Arc<Journal> {
    let options = LocalOptions {
        dir: dir.path().join("store"),
        max_bytes: GIB,
        wake_bytes: GIB,
        lease: std::time::Duration::ZERO,
        upload_lease: std::time::Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    };
    let local = Arc::new(LocalStore::open(options).await.unwrap());
    again(dir, local).await
}

async fn again(dir: &TempDir, local: Arc<LocalStore>) -> Arc<Journal> {
    let dir = dir.path().join("journal");
    let journal = Journal::open(&dir, GIB, false, local).await;
    Arc::new(journal.unwrap())
}

/// Has a blob wait that is here.
async fn waiting(journal: &Arc<Journal>) -> Digest {
    let content = Bytes::from_static(b"content");
    let digest = DigestFunction::Sha256.digest(&content);
    let put = journal.local.put(&digest, Blob::Bytes(content)).await;
    put.unwrap();
    announced(journal, &digest).await.accept().await.unwrap();
    digest
}

async fn announced(journal: &Arc<Journal>, digest: &Digest) -> Announced {
    journal.announce_blobs(vec![*digest]).await.unwrap()
}

/// A round of the replay, and what happens in it.
async fn round(journal: &Arc<Journal>, outcome: Outcome, meanwhile: impl Future<Output = ()>) {
    let taken = journal.take(1, 1).await.unwrap();
    meanwhile.await;
    let outcomes = taken.into_iter().zip([outcome]);
    let outcomes = outcomes.map(|((number, _), outcome)| (number, outcome));
    journal.settle(outcomes.collect()).await.unwrap();
}

fn gone(digest: Digest) -> Outcome {
    Outcome::Never(Error::NotFound(digest))
}

fn entries(journal: &Journal) -> u64 {
    journal.depth().borrow().entries
}

fn is_kept(journal: &Journal) -> bool {
    let mut in_use = false;
    let local = &journal.local;
    local.visit(&mut |candidate| in_use |= candidate.in_use);
    in_use
}

#[tokio::test]
async fn a_blob_that_stops_waiting_before_it_is_accepted_anew_waits_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir).await;
    let digest = waiting(&journal).await;
    let anew = announced(&journal, &digest).await;
    round(&journal, gone(digest), async {}).await;
    assert_eq!(entries(&journal), 0);
    anew.accept().await.unwrap();
    assert_eq!(entries(&journal), 1);
    assert!(is_kept(&journal));
    let journal = again(&dir, Arc::clone(&journal.local)).await;
    assert_eq!(entries(&journal), 1);
}

#[tokio::test]
async fn that_a_blob_was_gone_before_it_came_anew_does_not_end_its_wait() {
    let done: fn(Digest) -> Outcome = |_| Outcome::Done;
    for (outcome, left) in [(gone as _, 1), (done, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir).await;
        let digest = waiting(&journal).await;
        let anew = async {
            let anew = announced(&journal, &digest).await;
            anew.accept().await.unwrap();
        };
        round(&journal, outcome(digest), anew).await;
        assert_eq!(entries(&journal), left);
        round(&journal, outcome(digest), async {}).await;
        assert_eq!(entries(&journal), 0);
        assert!(!is_kept(&journal));
    }
}

#[tokio::test]
async fn a_blob_that_could_not_be_read_at_the_start_is_kept_once_it_is_accepted_anew() {
    for at_once in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir).await;
        let digest = waiting(&journal).await;
        round(&journal, Outcome::Done, async {}).await;
        let other = announced(&journal, &digest).await;
        {
            let mut state = journal.state();
            let added = journal.add(&mut state, vec![Record::blob(&digest)]);
            state.accept(added.unwrap()[0].0, None);
        }
        assert!(!is_kept(&journal));
        let anew = if at_once {
            other
        } else {
            announced(&journal, &digest).await
        };
        anew.accept().await.unwrap();
        assert!(is_kept(&journal));
        assert_eq!(entries(&journal), 1);
    }
}
