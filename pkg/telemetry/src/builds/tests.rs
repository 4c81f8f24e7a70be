//! Calls of a client, and the builds and explanations that come of them.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, Blob, BlobStore, CompletenessChecking, Digest, DigestFunction, Error,
    EvictionObserver as _, MemoryStore,
};
use prost::Message as _;
use reapi::v2::{self, ActionResult, OutputFile};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::Call;

mod load;
mod misses;
mod redaction;

/// A server with recorded builds, in memory but for the history.
struct Server {
    store: Arc<MemoryStore>,
    actions: RecordedActions,
    builds: Builds,
    evictions: Arc<Evictions>,
    shutdown: CancellationToken,
    worker: JoinHandle<()>,
}

fn options(dir: Option<&Path>, store: &Arc<MemoryStore>) -> BuildsOptions {
    BuildsOptions {
        dir: dir.map(Path::to_owned),
        history_max: 1 << 20,
        redaction: Redaction::new(&["TOKEN"]).unwrap(),
        stores: vec![Arc::clone(store) as _],
        is_local_only: false,
        evictions: Arc::default(),
    }
}

impl Server {
    fn start(dir: Option<&Path>, store: Arc<MemoryStore>) -> Self {
        Self::limited(1 << 20, dir, store)
    }

    fn limited(history_max: u64, dir: Option<&Path>, store: Arc<MemoryStore>) -> Self {
        let options = BuildsOptions {
            history_max,
            ..options(dir, &store)
        };
        Self::with(options, store)
    }

    fn with(options: BuildsOptions, store: Arc<MemoryStore>) -> Self {
        let evictions = Arc::clone(&options.evictions);
        let (builds, worker) = Builds::new(options);
        let memory = Budget::memory("trees", u64::MAX);
        let actions =
            CompletenessChecking::new(Arc::clone(&store), Arc::clone(&store) as _, memory);
        let shutdown = CancellationToken::new();
        Self {
            actions: RecordedActions::new(Arc::new(actions), builds.clone()),
            store,
            builds,
            evictions,
            worker: TaskTracker::new().spawn(worker.run(shutdown.clone())),
            shutdown,
        }
    }

    fn new() -> Self {
        Self::start(None, Arc::default())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.worker.await.unwrap();
    }

    async fn blob(&self, content: Vec<u8>) -> Digest {
        let digest = DigestFunction::Sha256.digest(&content);
        BlobStore::put(&*self.store, &digest, Blob::Bytes(content.into()))
            .await
            .unwrap();
        digest
    }

    /// Uploads an action that runs `arguments`.
    async fn upload(&self, arguments: &[&str]) -> Digest {
        let (action, command) = action(arguments);
        self.blob(command).await;
        self.blob(action).await
    }

    async fn look_up(&self, build: &str, action: &Digest) -> bool {
        let memory = Budget::memory("result", u64::MAX);
        let found = call(build)
            .scope(self.actions.get("", action, &memory))
            .await;
        assert!(
            !matches!(&found, Err(error) if !error.is_miss()),
            "{found:?}"
        );
        found.is_ok()
    }

    /// Stores a result of the action.
    async fn store(&self, build: &str, action: &Digest, output: &Digest) {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let result = ActionResult {
            output_files: vec![OutputFile {
                path: "bazel-out/k8/bin/out".to_owned(),
                digest: Some(output.to_proto()),
                ..OutputFile::default()
            }],
            execution_metadata: Some(v2::ExecutedActionMetadata {
                execution_start_timestamp: at(1),
                execution_completed_timestamp: at(3),
                ..v2::ExecutedActionMetadata::default()
            }),
            ..ActionResult::default()
        };
        call(build)
            .scope(self.actions.put("", action, result))
            .await
            .unwrap();
    }

    /// Looks an action up that misses, then uploads it with its result, as Bazel does.
    async fn miss_and_store(&self, build: &str, arguments: &[&str]) -> Digest {
        let (encoded, _) = action(arguments);
        let action = DigestFunction::Sha256.digest(&encoded);
        assert!(!self.look_up(build, &action).await);
        let output = self.blob(b"output".to_vec()).await;
        self.upload(arguments).await;
        self.store(build, &action, &output).await;
        action
    }

    /// Waits until a build satisfies a condition.
    async fn build(&self, id: &str, is_done: impl Fn(&Build) -> bool) -> Build {
        let wait = async {
            loop {
                if let Some(build) = self.builds.build(id).await
                    && is_done(&build)
                {
                    return build;
                }
                tokio::task::yield_now().await;
            }
        };
        let done = timeout(Duration::from_mins(1), wait).await;
        done.expect("the build never came to that state")
    }

    /// Returns the explanation of a miss in a build, once there is one.
    async fn explanation(&self, build: &str, action: &Digest) -> Explanation {
        let name = action.to_string();
        let find = |build: &Build| {
            let miss = build.misses.iter().find(|miss| miss.action == name);
            miss.and_then(|miss| miss.explanation.clone())
        };
        let build = self.build(build, |build| find(build).is_some()).await;
        find(&build).unwrap()
    }
}

/// Returns an encoded action and its command.
fn action(arguments: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let command = v2::Command {
        arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
        ..v2::Command::default()
    };
    let command = command.encode_to_vec();
    let action = v2::Action {
        command_digest: Some(DigestFunction::Sha256.digest(&command).to_proto()),
        input_root_digest: Some(DigestFunction::Sha256.empty().to_proto()),
        ..v2::Action::default()
    };
    (action.encode_to_vec(), command)
}

/// Returns the context of a call of Bazel for the target `//:t`.
fn call(build: &str) -> Arc<Call> {
    event::testing::call(build, "//:t", "Genrule")
}

#[tokio::test]
async fn a_build_counts_its_lookups_and_results_by_target_and_mnemonic() {
    let server = Server::new();
    let action = server.miss_and_store("b", &["one"]).await;
    assert!(server.look_up("b", &action).await);
    let build = server.build("b", |build| build.head.total.hits == 1).await;
    let head = &build.head;
    assert_eq!((&*head.tool, &*head.tool_version), ("bazel", "7.7.1"));
    assert_eq!(head.correlated_id, "day");
    let expected = Tally {
        hits: 1,
        misses: 1,
        stored: 1,
        hit_bytes: 6,
        stored_bytes: 6,
        executed_ms: 2000,
        slowest_ms: 2000,
        saved_ms: 2000,
        ..Tally::default()
    };
    assert_eq!(head.total, expected);
    assert_eq!(build.targets["//:t"], expected);
    assert_eq!(build.mnemonics["Genrule"], expected);
    assert_eq!(build.misses.len(), 1);
    assert_eq!(server.builds.recent(0, 10).builds, [build.head]);
    let target = server.builds.target("//:t").await.unwrap();
    assert_eq!((target.total, target.misses.len()), (expected, 1));
    assert_eq!(server.builds.target("//:other").await, None);
}

#[tokio::test]
async fn calls_without_a_build_are_counted_together() {
    let server = Server::new();
    let action = DigestFunction::Sha256.digest(b"unknown");
    server.look_up("", &action).await;
    let memory = Budget::memory("result", u64::MAX);
    let found = server.actions.get("", &action, &memory).await;
    assert!(matches!(found, Err(Error::NoResult(_))));
    let last = server.miss_and_store("b", &["x"]).await;
    server.explanation("b", &last).await;
    let recent = server.builds.recent(0, 10);
    assert_eq!(recent.without_build.misses, 2);
    assert_eq!(recent.total, 1);
}

#[tokio::test]
async fn builds_and_known_actions_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Some(dir.path()), Arc::default());
    let known = server.miss_and_store("a", &["one"]).await;
    server.explanation("a", &known).await;
    let evicted = DigestFunction::Sha256.digest(b"evicted");
    server.evictions.evicted(&evicted.hash_prefix(), true);
    let (before, store) = (server.builds.build("a").await, Arc::clone(&server.store));
    server.stop().await;

    let server = Server::start(Some(dir.path()), store);
    let after = server.build("a", |_| true).await;
    assert_eq!(Some(after), before);
    let changed = server.miss_and_store("a", &["two"]).await;
    assert_eq!(
        server.explanation("a", &changed).await.cause,
        Cause::Differs
    );
    assert!(!server.look_up("a", &evicted).await);
    let explanation = server.explanation("a", &evicted).await;
    assert!(
        matches!(explanation.cause, Cause::Evicted { .. }),
        "{explanation:?}"
    );
    let build = server.builds.build("a").await.unwrap();
    assert_eq!(build.misses.len(), 3, "the build continues after a restart");
}

#[tokio::test]
async fn misses_and_targets_of_builds_on_the_disk_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Some(dir.path()), Arc::default());
    let action = server.miss_and_store("a", &["one"]).await;
    let expected = server.explanation("a", &action).await;
    assert!(
        !server
            .look_up("b", &DigestFunction::Sha256.digest(b"b"))
            .await
    );
    server.build("b", |build| build.misses.len() == 1).await;
    let saved = server.builds.build("a").await.unwrap();
    server.stop().await;
    // Only the head of the build is in memory.
    let server = Server::start(Some(dir.path()), Arc::default());
    server.build("a", |_| true).await;
    server.builds.0.records.lock().keep_head_only("a");
    // Another build than that of the miss does no harm.
    for build in [None, Some("a"), Some("b")] {
        let view = server.builds.action(&action.hex(), build, 0).await.unwrap();
        assert_eq!(view.last_miss.unwrap().build, saved.head.id);
        assert_eq!(view.explanation.as_ref(), Some(&expected));
    }
    let target = server.builds.target("//:t").await.unwrap();
    let builds: Vec<_> = target.misses.iter().map(|it| it.build.as_str()).collect();
    assert_eq!((target.total.misses, &*builds), (2, &["b", "a"][..]));
    assert_eq!(server.builds.target("//:").await, None);
}

#[tokio::test]
async fn a_build_that_was_removed_for_a_newer_one_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Some(dir.path()), Arc::default());
    let action = server.miss_and_store("a", &["one"]).await;
    server.explanation("a", &action).await;
    server.stop().await;
    let files = dir.path().join("builds").read_dir().unwrap();
    let bytes = files.map(|file| {
        let file = std::fs::File::open(file.unwrap().path()).unwrap();
        // Some file systems allocate space late.
        file.sync_all().unwrap();
        let meta = file.metadata().unwrap();
        meta.len().max(meta.blocks() * 512)
    });
    let server = Server::limited(bytes.sum(), Some(dir.path()), Arc::default());
    server.build("a", |_| true).await;
    server.builds.0.records.lock().keep_head_only("a");
    server.look_up("b", &action).await;
    let builds = server.builds.clone();
    server.stop().await;
    let listed: Vec<_> = builds
        .recent(0, 9)
        .builds
        .into_iter()
        .map(|head| head.id)
        .collect();
    assert_eq!(listed, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn an_unusable_folder_does_not_disturb_calls_and_is_tried_again_without_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("builds");
    std::fs::write(&folder, "a file").unwrap();
    let server = Server::start(Some(dir.path()), Arc::default());
    let action = server.miss_and_store("a", &["one"]).await;
    let minutes = Duration::from_mins(3);
    tokio::time::sleep(minutes).await;
    server.explanation("a", &action).await;

    std::fs::remove_file(&folder).unwrap();
    tokio::time::sleep(minutes).await;
    let history = history::History::new(dir.path(), u64::MAX);
    let saved = history.build("a").unwrap();
    assert_eq!(saved, server.builds.build("a").await);
    assert!(history.known::<known::KnownActions>().unwrap().is_some());
    server.stop().await;
}

#[tokio::test]
async fn calls_that_the_worker_cannot_keep_up_with_are_counted_and_not_delayed() {
    let (builds, _worker) = Builds::new(options(None, &Arc::default()));
    let actions = RecordedActions::new(Arc::new(MemoryStore::default()), builds.clone());
    let memory = Budget::memory("result", u64::MAX);
    let action = DigestFunction::Sha256.digest(b"action");
    for _ in 0..MAX_WAITING + 3 {
        let found = actions.get("", &action, &memory).await;
        assert!(found.is_err());
    }
    assert_eq!(builds.recent(0, 1).unrecorded, 3);
}

#[tokio::test]
async fn calls_that_arrive_while_others_are_recorded_wait_for_the_next_time() {
    let (builds, mut worker) = Builds::new(options(None, &Arc::default()));
    let actions = RecordedActions::new(Arc::new(MemoryStore::default()), builds.clone());
    let memory = Budget::memory("result", u64::MAX);
    let action = DigestFunction::Sha256.digest(b"action");
    let look_up = async || assert!(actions.get("", &action, &memory).await.is_err());
    for _ in 0..MAX_WAITING {
        look_up().await;
    }
    // This future and the one of the worker take turns, so each yield lets one more call arrive.
    let mut arrived = 0;
    let arrive = async {
        loop {
            look_up().await;
            arrived += 1;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = worker.apply_waiting() => {}
        () = arrive => {}
    }
    assert!(arrived > 1, "other tasks never ran");
    assert_eq!(builds.recent(0, 1).without_build.misses, MAX_WAITING as u64);
}

#[tokio::test]
async fn an_uploaded_action_is_shown_without_secrets() {
    let server = Server::new();
    let arguments = ["run", "--TOKEN=hunter2", "https://user:pass@host/"];
    let action = server.miss_and_store("b", &arguments).await;
    server.explanation("b", &action).await;
    for name in [
        action.to_string(),
        action.to_string().replace('/', "-"),
        action.hex(),
    ] {
        let view = server.builds.action(&name, None, 0).await.unwrap();
        let redacted = ["run", "--TOKEN=[redacted]", "https://[redacted]@host/"];
        assert_eq!(view.arguments, redacted);
        assert_eq!(view.outputs.unwrap()[0].path, "bazel-out/k8/bin/out");
        assert_eq!(view.last_miss.unwrap().build, "b");
    }
    assert_eq!(server.builds.action("nonsense", None, 0).await, None);
}
