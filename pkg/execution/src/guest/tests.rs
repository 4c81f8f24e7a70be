use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use async_trait::async_trait;
use gorego_scheduler::{Generation, ScriptedWorker};
use gorego_storage::{ActionCacheExt as _, Blob, DigestFunction, MemoryStore, Put};
use prost::Message as _;
use reapi::{
    gorego::cluster::Prefetch,
    v2::{Action, ActionResult, Command, Directory, FileNode, OutputFile},
};

use super::*;
use crate::{MemoryHistory, admit::admit_again, inputs::Resident};

const SHA256: DigestFunction = DigestFunction::Sha256;

async fn put(store: &MemoryStore, content: &[u8]) -> Digest {
    let digest = SHA256.digest(content);
    let blob = Blob::Bytes(content.to_vec().into());
    BlobStore::put(store, &digest, blob).await.unwrap();
    digest
}

/// Stores an action with an input. Returns both.
async fn action(store: &MemoryStore) -> (Digest, Digest) {
    let command = Command {
        arguments: vec!["true".to_owned()],
        ..Command::default()
    };
    let input = put(store, b"input").await;
    let root = Directory {
        files: vec![FileNode {
            name: "input".to_owned(),
            digest: Some(input.to_proto()),
            ..FileNode::default()
        }],
        ..Directory::default()
    };
    let action = Action {
        command_digest: Some(put(store, &command.encode_to_vec()).await.to_proto()),
        input_root_digest: Some(put(store, &root.encode_to_vec()).await.to_proto()),
        // Longer than this node permits.
        timeout: Some(prost_types::Duration {
            seconds: 1_000_000,
            nanos: 0,
        }),
        ..Action::default()
    };
    (put(store, &action.encode_to_vec()).await, input)
}

fn guest(action: Digest) -> GuestAction {
    GuestAction {
        entry: "entry".into(),
        instance: InstanceName::parse("a/b").unwrap(),
        action,
        timeout: Duration::from_millis(1500),
        queued: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789),
        inline_stdout: true,
        inline_stderr: false,
        inline_output_files: vec!["out".to_owned()],
        metadata: Some(RequestMetadata {
            target_id: "//a:b".to_owned(),
            action_mnemonic: "Javac".to_owned(),
            ..RequestMetadata::default()
        }),
    }
}

fn executor(store: &Arc<MemoryStore>) -> Executor {
    let (worker, _) = ScriptedWorker::new();
    Executor::new(
        crate::testing::options(),
        Arc::clone(store) as _,
        Arc::clone(store) as _,
        Generation::new("node", 1).unwrap(),
        Some(worker),
        Arc::new(MemoryHistory::open(
            "/nonexistent/1".into(),
            "/nonexistent/2".into(),
        )),
    )
}

#[tokio::test]
async fn a_granted_action_is_that_of_the_entry_node() {
    let store = Arc::<MemoryStore>::default();
    let (digest, input) = action(&store).await;
    let executor = executor(&store);
    let guest = guest(digest);
    let job = executor.guest(guest.clone()).await.unwrap();
    assert_eq!(job.kind.name(), "Javac //a:b");
    assert_eq!(job.inputs.blobs(), [input]);
    assert_eq!(job.entry.as_deref(), Some("entry"));
    let near = job.origin.scope(async { Call::near() }).await;
    assert_eq!(near.as_deref(), Some("entry"));

    let mut grant = job.to_grant();
    grant.metadata = guest.metadata.as_ref().unwrap().encode_to_vec().into();
    assert_eq!(GuestAction::from_grant("entry", &grant).unwrap(), guest);
    grant.hash = grant.hash.slice(1..);
    assert!(GuestAction::from_grant("entry", &grant).is_err());
}

#[tokio::test]
async fn a_granted_action_whose_directory_is_missing_here_is_no_job() {
    let store = Arc::<MemoryStore>::default();
    let (digest, _) = action(&store).await;
    let executor = executor(&store);
    let root = executor.guest(guest(digest)).await.unwrap().inputs.root;
    store.remove(&root);
    let refused = executor.guest(guest(digest)).await;
    assert_eq!(refused.unwrap_err(), Failure::Missing(vec![root]));
}

/// The entry node looked the inputs up before it queued the action, and the attempt finds those that are missing.
#[tokio::test]
async fn the_inputs_of_a_granted_action_are_not_looked_up_again() {
    let store = Arc::<MemoryStore>::default();
    let (digest, input) = action(&store).await;
    store.remove(&input);
    let job = executor(&store).guest(guest(digest)).await.unwrap();
    assert_eq!(job.inputs.blobs(), [input]);
}

/// The time limit of the action is longer than this node permits.
#[tokio::test]
async fn inputs_are_fetched_ahead_of_actions_that_this_node_would_run_as_a_guest() {
    let store = Arc::<MemoryStore>::default();
    let (digest, _) = action(&store).await;
    let prefetch = Prefetch {
        function: SHA256.name().to_owned(),
        hash: digest.hash().to_vec().into(),
        size: digest.size(),
    };
    let executor = executor(&store);
    executor.fetch_ahead("entry", &prefetch).await.unwrap();
}

fn done(value: ExecuteResponse) -> Report<ExecuteResponse> {
    Report::Done(publish::outcome(value))
}

fn value(report: Report<ExecuteResponse>) -> ExecuteResponse {
    match report {
        Report::Done(outcome) => outcome.value,
        report => panic!("{report:?}"),
    }
}

#[tokio::test]
async fn a_report_arrives_as_it_was_sent() {
    let store = MemoryStore::default();
    for len in [0, 1000, 48 << 10, 200_000] {
        let response = ExecuteResponse {
            message: "x".repeat(len),
            ..ExecuteResponse::default()
        };
        let message = encode_report(done(response.clone()), &store).await;
        assert!(message.encoded_len() < 60_000);
        assert_eq!(value(decode_report(message, &store).await), response);
    }
    let failed = encode_report(failed_attempt(Failure::Internal("why".to_owned())), &store);
    let Report::Failed(outcome) = decode_report(failed.await, &store).await else {
        panic!("not failed");
    };
    assert_eq!(outcome.value.status.unwrap().message, "why");
    let missing = Failure::Missing(vec![DigestFunction::Sha256.digest(b"missing")]);
    let unsuited = encode_report(failed_attempt(missing.clone()), &store).await;
    let Report::Unsuited(outcome) = decode_report(unsuited, &store).await else {
        panic!("not unsuited");
    };
    assert_eq!(outcome.value.status, Some(missing.status()));
    let stopped = encode_report(Report::Stopped, &store).await;
    let stopped = decode_report(stopped, &store).await;
    assert!(matches!(stopped, Report::Stopped));
}

/// The outcome of the last attempt is the end of the action.
#[tokio::test]
async fn failed_attempts_report_neither_unavailable_nor_a_retry_delay() {
    let store = MemoryStore::default();
    let why = || "why".to_owned();
    for (failure, code) in [
        (Failure::Unavailable(why()), Code::Internal),
        (Failure::QueueFull(why()), Code::Internal),
        (Failure::Corrupt(why()), Code::Internal),
        (Failure::Internal(why()), Code::Internal),
        (Failure::NoSpace(why()), Code::ResourceExhausted),
        (Failure::Unmet(why()), Code::FailedPrecondition),
    ] {
        let message = encode_report(failed_attempt(failure.clone()), &store).await;
        let report = decode_report(message, &store).await;
        let (Report::Failed(outcome) | Report::Unsuited(outcome)) = report else {
            panic!("{failure}: {report:?}");
        };
        let status = outcome.value.status.unwrap();
        assert_eq!(status.code, code as i32, "{failure}");
        assert_eq!(status.details, [], "{failure}");
    }
}

#[tokio::test]
async fn an_attempt_whose_response_is_unreadable_has_failed() {
    let (sender, reader) = (MemoryStore::default(), MemoryStore::default());
    let response = ExecuteResponse {
        message: "x".repeat(100_000),
        ..ExecuteResponse::default()
    };
    let message = encode_report(done(response), &sender).await;
    let mut malformed = encode_report(done(ExecuteResponse::default()), &sender).await;
    malformed.response = vec![0xff].into();
    let mut huge = message.clone();
    huge.response_size = u64::MAX;
    for message in [message, malformed, huge] {
        let Report::Failed(outcome) = decode_report(message, &reader).await else {
            panic!("not failed");
        };
        let status = outcome.value.status.unwrap();
        assert_eq!(status.code, Code::Internal as i32, "{status:?}");
    }
}

/// Returns a response with an output and inlined content.
fn response(output: &Digest, exit_code: i32) -> ExecuteResponse {
    let out = OutputFile {
        path: "out".to_owned(),
        digest: Some(output.to_proto()),
        contents: vec![1].into(),
        ..OutputFile::default()
    };
    ExecuteResponse {
        result: Some(ActionResult {
            output_files: vec![out],
            exit_code,
            ..ActionResult::default()
        }),
        ..ExecuteResponse::default()
    }
}

/// A local tier, and that of another node, which is read by calls near to it.
#[derive(Debug, Default)]
struct Near {
    local: MemoryStore,
    node: MemoryStore,
    /// A backing cache that the other node does not have.
    backing: Option<MemoryStore>,
    /// The number of lookups that have yet to fail.
    to_fail: AtomicU32,
}

#[async_trait]
impl BlobStore for Near {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, Error> {
        let count = |left: u32| left.checked_sub(1);
        if self.to_fail.fetch_update(Relaxed, Relaxed, count).is_ok() {
            return Err(Error::Unavailable("down".to_owned()));
        }
        let backing = self.backing.as_ref().unwrap_or(&self.local);
        backing.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob, Error> {
        BlobStore::get(&self.local, digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put, Error> {
        let backing = self.backing.as_ref().unwrap_or(&self.local);
        BlobStore::put(backing, digest, blob).await
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest, Error>> {
        assert_eq!(Call::near().as_deref(), Some("node-1"));
        let mut fetched = Vec::new();
        for digest in digests {
            let blob = BlobStore::get(&self.node, digest, 0).await;
            fetched.push(match blob {
                Ok(blob) => BlobStore::put(&self.local, digest, blob)
                    .await
                    .map(|_| *digest),
                Err(error) => Err(error),
            });
        }
        fetched
    }
}

#[tokio::test]
async fn outputs_that_only_the_other_node_has_are_read_from_it() {
    for backing in [None, Some(MemoryStore::default())] {
        let stores = Arc::new(Near {
            backing,
            ..Near::default()
        });
        let results = Arc::<MemoryStore>::default();
        let publisher = Publisher::new(Arc::clone(&stores) as _, Arc::clone(&results) as _);
        let (digest, _) = action(&results).await;
        let job = executor(&results).guest(guest(digest)).await.unwrap();
        let output = put(&stores.node, b"output").await;
        let report = publisher.report(&job, done(response(&output, 0)), "node-1");
        assert_eq!(value(report.await), response(&output, 0));
        assert_eq!(stores.find_missing(&[output]).await.unwrap(), []);
        assert!(results.find("a/b", &digest).await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_stores_of_the_entry_node_is_no_failure_of_the_other_node() {
    let results = Arc::<MemoryStore>::default();
    let (digest, _) = action(&results).await;
    let job = executor(&results).guest(guest(digest)).await.unwrap();
    let output = put(&results, b"output").await;
    for (failures, succeeds) in [(2, true), (u32::MAX, false)] {
        let stores = Arc::new(Near {
            to_fail: failures.into(),
            ..Near::default()
        });
        put(&stores.local, b"output").await;
        let publisher = Publisher::new(stores, Arc::clone(&results) as _);
        let report = publisher.report(&job, done(response(&output, 0)), "node-1");
        match report.await {
            Report::Done(_) => assert!(succeeds, "the stores are down"),
            Report::Unsuited(outcome) => {
                assert!(!succeeds, "the stores are up again");
                let status = outcome.value.status.unwrap();
                assert_eq!(status.code, Code::Internal as i32, "{status:?}");
                assert_eq!(status.details, []);
            }
            report => panic!("{report:?}"),
        }
    }
}

#[tokio::test]
async fn the_entry_node_stores_results_whose_outputs_it_finds() {
    let store = Arc::<MemoryStore>::default();
    let publisher = Publisher::new(Arc::clone(&store) as _, Arc::clone(&store) as _);
    let job = async |do_not_cache| {
        let content = Action {
            do_not_cache,
            timeout: None,
            ..Action::decode(read(&store, &action(&store).await.0).await).unwrap()
        };
        let digest = put(&store, &content.encode_to_vec()).await;
        let (options, resident) = (crate::testing::options(), Resident::within(1 << 20));
        let job = admit_again(&options, &*store, &resident, &digest, None);
        job.await.unwrap()
    };
    let (cached, uncached) = (job(false).await, job(true).await);
    let output = put(&store, b"output").await;

    for (job, exit) in [(&uncached, 0), (&cached, 1)] {
        let report = publisher.report(job, done(response(&output, exit)), "node-1");
        assert_eq!(value(report.await), response(&output, exit));
        assert_eq!(store.find("", &job.key.action).await.unwrap(), None);
    }
    let missing = SHA256.digest(b"missing");
    let report = publisher.report(&cached, done(response(&missing, 0)), "node-1");
    let Report::Failed(outcome) = report.await else {
        panic!("not failed");
    };
    let why = outcome.value.status.unwrap().message;
    assert!(
        why.contains("node-1") && why.contains(&missing.hex()),
        "{why}"
    );
    assert_eq!(store.find("", &cached.key.action).await.unwrap(), None);

    let report = publisher.report(&cached, done(response(&output, 0)), "node-1");
    assert_eq!(value(report.await), response(&output, 0));
    let stored = store.find("", &cached.key.action).await.unwrap().unwrap();
    assert!(stored.output_files[0].contents.is_empty());
}

async fn read(store: &MemoryStore, digest: &Digest) -> bytes::Bytes {
    let blob = BlobStore::get(store, digest, 0).await.unwrap();
    blob.into_bytes().await.unwrap()
}
