//! A local tier in front of the owners.

use std::path::Path;

use gorego_proxy::{Backing, Memory, OnOutage, Options, Outbox, ProxyActions, ProxyStore};
use gorego_storage::{ActionCacheExt as _, BlobStoreExt as _};
use gorego_storage_conformance as conformance;
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};
use reapi::v2::OutputFile;
use tempfile::TempDir;

use super::*;
use crate::blobs::Owners;

struct Node {
    store: Arc<ProxyStore>,
    local: Arc<LocalStore>,
    _dir: TempDir,
}

async fn open(dir: &Path) -> Arc<LocalStore> {
    let options = LocalOptions {
        dir: dir.to_owned(),
        max_bytes: 1 << 30,
        wake_bytes: 1 << 30,
        lease: Duration::from_hours(1),
        upload_lease: Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    };
    Arc::new(LocalStore::open(options).await.unwrap())
}

async fn node(cluster: &Cluster) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let local = open(dir.path()).await;
    let owners = Owners::new(Arc::clone(&cluster.peers), Arc::clone(&local) as _, 2);
    let owners = Arc::new(owners);
    let backing = Backing {
        blobs: Arc::clone(&owners) as _,
        actions: owners,
    };
    let outbox = Outbox::open(Arc::clone(&local), 1 << 20).await.unwrap();
    let options = Options {
        existence_ttl: Duration::from_mins(5),
        read_only: false,
        local_first: true,
        prefetch: false,
        on_outage: OnOutage::Fail,
        outbox_retry: Duration::from_hours(1),
        memory: Memory::default(),
    };
    let store = ProxyStore::new(Arc::clone(&local), backing, Arc::new(outbox), options);
    Node {
        store: Arc::new(store),
        local,
        _dir: dir,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_passes_conformance() {
    let kept = Mutex::new(Vec::new());
    let make = async |others| {
        let node = node(&Cluster::new(others)).await;
        let store = Arc::clone(&node.store);
        kept.lock().push(node);
        store
    };
    conformance::blob_store(async || make(3).await).await;
    conformance::links(async || make(3).await).await;
    conformance::uploads(async || make(0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_pass_action_cache_conformance() {
    conformance::action_cache(async || {
        let cluster = Cluster::new(3);
        Arc::new(Owners::new(cluster.peers, Arc::<MemoryStore>::default(), 2))
    })
    .await;
}

#[tokio::test]
async fn a_written_blob_and_its_result_survive_the_node() {
    let cluster = Cluster::new(3);
    let writer = node(&cluster).await;
    for len in [10, LARGE] {
        let (content, [first, _]) = cluster.content(len, [0, 1]);
        let name = digest(&content);
        let chunks = Blob::Bytes(content.clone()).into_chunks();
        let put = writer.store.put(&name, Blob::stream(chunks)).await;
        assert_eq!(put.unwrap(), Put::Stored);
        assert!(writer.local.contains(&name).await.unwrap());
        let result = ActionResult {
            output_files: vec![OutputFile {
                path: "out".to_owned(),
                digest: Some(name.to_proto()),
                ..OutputFile::default()
            }],
            ..ActionResult::default()
        };
        let actions = ProxyActions::new(&writer.store);
        actions.put("", &name, result.clone()).await.unwrap();

        // One owner is lost, too.
        first.fails(Fault::Down);
        let reader = node(&cluster).await;
        let actions = ProxyActions::new(&reader.store);
        let found = actions.find("", &name).await.unwrap();
        assert_eq!(found, Some(result));
        assert!(read(&*reader.store, &name).await.unwrap() == content);
        assert!(reader.local.contains(&name).await.unwrap());
        first.fails(Fault::None);
    }
}

#[tokio::test]
async fn a_lookup_copies_a_local_blob_to_new_owners() {
    let cluster = Cluster::new(3);
    let writer = node(&cluster).await;
    let (content, [first, second]) = cluster.content(10, [0, 1]);
    let name = digest(&content);
    let put = writer.store.put(&name, Blob::Bytes(content)).await;
    put.unwrap();
    for node in [&first, &second] {
        node.memory.remove(&name);
    }
    // They started again without their blobs.
    cluster.set((1..=3).map(|number| member(number, 2)));
    assert!(writer.store.contains(&name).await.unwrap());
    assert!(first.has(&name).await && second.has(&name).await);
}

#[tokio::test]
async fn a_blob_of_a_lost_node_is_missing_and_no_error() {
    let cluster = Cluster::new(3);
    let reader = node(&cluster).await;
    let (content, [first, second]) = cluster.content(10, [0, 1]);
    first.gets(&content).await;
    let name = digest(&content);
    assert!(reader.store.contains(&name).await.unwrap());
    first.fails(Fault::Down);
    second.fails(Fault::Silent);
    cluster.set([member(3, 1)]);
    assert!(!reader.store.contains(&name).await.unwrap());
    let read = read(&*reader.store, &name).await;
    assert!(matches!(read, Err(Error::NotFound(_))), "{read:?}");
}
