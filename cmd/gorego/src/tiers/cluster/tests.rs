//! Nodes that share blobs over real connections.

use gorego_scheduler::Generation;
use gorego_storage::{ActionCacheExt as _, Blob, DigestFunction};
use reapi::v2::{ActionResult, ExecutedActionMetadata, OutputFile};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;

/// A node whose local tier is served to the other one.
struct Node {
    tiers: Tiers,
    peers: Arc<Peers>,
    address: String,
    stop: CancellationToken,
    tasks: TaskTracker,
    _dir: TempDir,
}

impl Node {
    async fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.local_cache.dir = dir.path().to_owned();
        let memory = Parts::of(1 << 30, 3 << 20, 1024, true, true);
        let connect = connect(&memory.downloads, Arc::default(), |_| None);
        let cluster = ClusterStores {
            peers: Arc::new(Peers::new(name, connect)),
            replicas: 2,
            peer_reads: true,
        };
        let tiers = Tiers::open(&config, &memory, None, None, Some(&cluster)).await;
        let tiers = tiers.unwrap_or_else(|error| panic!("{error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stores = tiers.mesh_stores().unwrap();
        let options = gorego_server::Options::default();
        let served = gorego_server::serve(listener, stores, options, stop.clone());
        tasks.spawn(async move { served.await.unwrap() });
        Self {
            tiers,
            peers: cluster.peers,
            address,
            stop,
            tasks,
            _dir: dir,
        }
    }

    fn knows(&self, name: &str, other: &Self) {
        self.peers.set([Member {
            node: Generation::new(name, 1).unwrap(),
            address: other.address.clone(),
        }]);
    }

    async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.tiers.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_what_was_written_to_another_that_is_gone() {
    let (one, two) = (Node::new("one").await, Node::new("two").await);
    one.knows("two", &two);
    two.knows("one", &one);
    let mut written = Vec::new();
    for len in [10, 1 << 20, 5 << 20] {
        let content = bytes::Bytes::from(vec![7; len]);
        let digest = DigestFunction::Sha256.digest(&content);
        let chunks = Blob::Bytes(content.clone()).into_chunks();
        let put = one.tiers.stores.blobs.put(&digest, Blob::stream(chunks));
        put.await.unwrap();
        let result = ActionResult {
            output_files: vec![OutputFile {
                path: "out".to_owned(),
                digest: Some(digest.to_proto()),
                ..OutputFile::default()
            }],
            ..ActionResult::default()
        };
        let put = one.tiers.stores.actions.put("i", &digest, result.clone());
        put.await.unwrap();
        written.push((digest, content, result));
    }
    one.close().await;
    two.peers.set([]);
    for (digest, content, result) in written {
        let found = two.tiers.stores.actions.find("i", &digest).await.unwrap();
        assert_eq!(found, Some(result));
        let blob = two.tiers.stores.blobs.get(&digest, 0).await.unwrap();
        assert!(blob.into_bytes().await.unwrap() == content);
    }
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_owner_stores_the_result_that_completed_last() {
    let (one, two) = (Node::new("one").await, Node::new("two").await);
    one.knows("two", &two);
    two.knows("one", &one);
    let action = DigestFunction::Sha256.digest(b"action");
    // The older result is that of the node which writes it, too.
    for (writer, completed) in [(&one, 2), (&two, 1), (&one, 1), (&two, 3)] {
        let mut metadata = ExecutedActionMetadata::default();
        let time = &mut metadata.execution_completed_timestamp;
        time.get_or_insert_default().seconds = completed;
        let result = ActionResult {
            execution_metadata: Some(metadata),
            ..ActionResult::default()
        };
        let put = writer.tiers.stores.actions.put("i", &action, result);
        put.await.unwrap();
        for owner in [&one, &two] {
            let found = owner.tiers.local.as_ref().unwrap().find("i", &action).await;
            let metadata = found.unwrap().unwrap().execution_metadata.unwrap();
            let kept = metadata.execution_completed_timestamp.unwrap().seconds;
            assert_eq!(kept, completed.max(2));
        }
    }
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_reads_from_the_other_one() {
    let (one, two) = (Node::new("one").await, Node::new("two").await);
    let content = bytes::Bytes::from(vec![7; 1 << 20]);
    let digest = DigestFunction::Sha256.digest(&content);
    let put = one
        .tiers
        .stores
        .blobs
        .put(&digest, Blob::Bytes(content.clone()));
    put.await.unwrap();
    let found = two.tiers.stores.blobs.find_missing(&[digest]).await;
    assert_eq!(found.unwrap(), [digest]);
    two.knows("one", &one);
    let found = two.tiers.stores.blobs.find_missing(&[digest]).await;
    assert_eq!(found.unwrap(), []);
    let blob = two.tiers.stores.blobs.get(&digest, 0).await.unwrap();
    assert!(blob.into_bytes().await.unwrap() == content);
    one.close().await;
    two.close().await;
}
