//! Failures that real processes and stores do not have on demand.

use std::{
    ffi::OsStr,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use gorego_execution::{PeerPlatforms, Runner};
use gorego_limits::Budget;
use gorego_sandbox::{Ended, Exit, Launch, LaunchError, Leftovers, NetworkAttempts, Usage};
use gorego_storage::{
    ActionCache, Adopt, Blob, BlobStore, CachedResult, Digest, DigestFunction, Error, LinkedAs,
    Links, MemoryStore, Put, Result,
};
use reapi::v2::ActionResult;
use rustix::fs::{Mode, OFlags};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    action::Action,
    common::{Fixture, Node, USER, code, has_users},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_lost_supervisor_is_retried_and_then_internal", lost),
    (
        "an_action_that_succeeds_at_the_second_attempt_succeeds",
        second_attempt,
    ),
    (
        "a_full_disk_is_retried_once_and_then_resource_exhausted",
        full,
    ),
    (
        "a_full_disk_is_left_to_other_nodes_only_if_one_may_run_the_action",
        full_among_nodes,
    ),
    ("a_full_disk_while_outputs_are_stored_is_retried", full_once),
    (
        "an_action_whose_outputs_were_evicted_before_its_result_was_stored_runs_again",
        evicted,
    ),
    (
        "an_action_cache_that_fails_does_not_fail_the_action",
        no_action_cache,
    ),
    ("altered_inputs_run_the_action_again_on_copies", altered),
    (
        "an_action_that_altered_its_inputs_and_was_lost_runs_again_on_copies",
        altered_and_lost,
    ),
    (
        "an_action_that_is_cancelled_while_its_log_is_stored_ends",
        stalled_log,
    ),
    (
        "a_file_that_the_user_of_the_action_cannot_read_is_no_output",
        secret,
    ),
];

/// A runner whose first runs lose their supervisor, and whose later ones exit with 0.
#[derive(Debug, Default)]
struct FakeRunner {
    lost: u32,
    runs: AtomicU32,
}

#[async_trait]
impl Runner for FakeRunner {
    async fn run(&self, _: Launch, _: CancellationToken) -> Result<Ended, LaunchError> {
        let run = self.runs.fetch_add(1, Relaxed);
        if run < self.lost {
            return Err(LaunchError::Lost("the supervisor died".to_owned()));
        }
        let now = SystemTime::now();
        Ok(Ended {
            exit: Exit::Code(0),
            timed_out: false,
            stopped: false,
            excess: None,
            refused_processes: 0,
            usage: Usage::default(),
            leftovers: Leftovers::default(),
            attempts: NetworkAttempts::default(),
            root: None,
            started: now,
            ended: now + Duration::from_secs(1),
        })
    }
}

/// A runner of commands that leave a file of root's, as a hard link where the system permits it.
#[derive(Debug, Default)]
struct SecretRunner(FakeRunner);

#[async_trait]
impl Runner for SecretRunner {
    async fn run(&self, launch: Launch, stop: CancellationToken) -> Result<Ended, LaunchError> {
        let file = rustix::fs::openat(&launch.root, "file", OFlags::RDONLY, Mode::empty());
        rustix::fs::fchmod(file.unwrap(), Mode::RUSR).unwrap();
        self.0.run(launch, stop).await
    }
}

/// A runner of commands that write into their log.
#[derive(Debug, Default)]
struct LoggingRunner(FakeRunner);

#[async_trait]
impl Runner for LoggingRunner {
    async fn run(&self, launch: Launch, stop: CancellationToken) -> Result<Ended, LaunchError> {
        rustix::io::write(&launch.stdout, b"text").unwrap();
        self.0.run(launch, stop).await
    }
}

/// A store that fails.
#[derive(Debug, Default)]
struct FakeStore {
    inner: MemoryStore,
    /// The number of files that find the disk full when they are staged, and when they are stored.
    full_stages: AtomicU32,
    full_puts: AtomicU32,
    /// The number of lookups that find every blob evicted.
    evicted: AtomicU32,
    /// Set if results are not stored.
    no_results: bool,
    /// Set if files are never stored; notified when one should be.
    stalls: Option<Arc<Notify>>,
    /// Set if each link is found altered.
    altered: bool,
    links: AtomicU32,
    copies: AtomicU32,
}

fn take(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

fn no_space(what: &str) -> Error {
    Error::Full {
        what: what.to_owned(),
        bytes: 1,
        why: "the disk is full".to_owned(),
    }
}

#[async_trait]
impl BlobStore for FakeStore {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if take(&self.evicted) {
            return Ok(digests.to_vec());
        }
        self.inner.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        BlobStore::get(&self.inner, digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        BlobStore::put(&self.inner, digest, blob).await
    }
}

#[async_trait]
impl ActionCache for FakeStore {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        ActionCache::get(&self.inner, instance, action, memory).await
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        if self.no_results {
            return Err(Error::Unavailable("no action cache".to_owned()));
        }
        ActionCache::put(&self.inner, instance, action, result).await
    }
}

#[async_trait]
impl Links for FakeStore {
    fn inner(&self) -> Option<&dyn Links> {
        Some(&self.inner)
    }

    fn link(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<LinkedAs> {
        if take(&self.full_stages) {
            return Err(no_space("an input"));
        }
        self.links.fetch_add(1, Relaxed);
        self.inner.copy(digest, dir, name, executable)?;
        Ok(LinkedAs::Link)
    }

    fn copy(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<()> {
        self.copies.fetch_add(1, Relaxed);
        self.inner.copy(digest, dir, name, executable)
    }

    fn altered(&self, digests: &[Digest]) -> Vec<Digest> {
        if self.altered {
            digests.to_vec()
        } else {
            Vec::new()
        }
    }

    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
        if let Some(stalled) = &self.stalls {
            stalled.notify_one();
            std::future::pending::<()>().await;
        }
        if take(&self.full_puts) {
            return files.iter().map(|_| Err(no_space("an output"))).collect();
        }
        self.inner.adopt(function, files).await
    }
}

fn node(runner: &Arc<FakeRunner>, store: FakeStore) -> Node<FakeStore> {
    let dir = tempfile::tempdir().unwrap();
    Node::new(dir, Arc::new(store), Arc::clone(runner) as _, |_| {})
}

/// An action with one input, whose output is its input.
fn action() -> Action {
    Action::script("")
        .file("file", "content")
        .outputs(&["file"])
}

fn lost(fixture: &Fixture) {
    fixture.run(async {
        let runner = Arc::new(FakeRunner {
            lost: 100,
            ..FakeRunner::default()
        });
        let node = node(&runner, FakeStore::default());
        let response = node.execute(&action()).await;
        assert_eq!(code(&response), 13);
        assert_eq!(runner.runs.load(Relaxed), 3);
        assert_eq!(response.status.unwrap().details, []);
        node.is_clean().await;
    });
}

fn second_attempt(fixture: &Fixture) {
    fixture.run(async {
        let runner = Arc::new(FakeRunner {
            lost: 1,
            ..FakeRunner::default()
        });
        let node = node(&runner, FakeStore::default());
        node.succeed(&action()).await;
        assert_eq!(runner.runs.load(Relaxed), 2);
    });
}

fn full_disk(fixture: &Fixture, store: FakeStore, expected: i32) {
    fixture.run(async {
        let node = node(&Arc::default(), store);
        let response = node.execute(&action()).await;
        assert_eq!(code(&response), expected, "{response:?}");
        assert!(
            response
                .status
                .is_none_or(|status| status.details.is_empty())
        );
        node.is_clean().await;
    });
}

fn full(fixture: &Fixture) {
    let full_disk = |full_stages, full_puts, expected| {
        let store = FakeStore {
            full_stages: AtomicU32::new(full_stages),
            full_puts: AtomicU32::new(full_puts),
            ..FakeStore::default()
        };
        full_disk(fixture, store, expected);
    };
    full_disk(2, 0, 8);
    full_disk(0, 2, 8);
    full_disk(1, 1, 8);
    full_disk(1, 0, 0);
}

fn full_among_nodes(fixture: &Fixture) {
    for (is_alone, expected) in [(true, 8), (false, 0)] {
        let store = FakeStore {
            full_stages: AtomicU32::new(2),
            ..FakeStore::default()
        };
        fixture.run(async {
            let dir = tempfile::tempdir().unwrap();
            let runner = Arc::<FakeRunner>::default();
            let peers = PeerPlatforms::new(move |_| !is_alone);
            let node = Node::new(dir, Arc::new(store), runner as _, |options| {
                options.peer_platforms = Some(peers);
            });
            let response = node.execute(&action()).await;
            assert_eq!(code(&response), expected, "{response:?}");
        });
    }
}

fn full_once(fixture: &Fixture) {
    let store = FakeStore {
        full_puts: AtomicU32::new(1),
        ..FakeStore::default()
    };
    full_disk(fixture, store, 0);
}

fn evicted(fixture: &Fixture) {
    fixture.run(async {
        let store = FakeStore {
            evicted: AtomicU32::new(1),
            ..FakeStore::default()
        };
        let runner = Arc::new(FakeRunner::default());
        let node = node(&runner, store);
        node.succeed(&action()).await;
        assert_eq!(runner.runs.load(Relaxed), 2);
    });
}

fn no_action_cache(fixture: &Fixture) {
    fixture.run(async {
        let store = FakeStore {
            no_results: true,
            ..FakeStore::default()
        };
        let node = node(&Arc::default(), store);
        let response = node.execute(&action()).await;
        assert_eq!(code(&response), 0);
        assert_eq!(response.result.unwrap().output_files.len(), 1);
        assert!(
            response.message.contains("not cached"),
            "{}",
            response.message
        );
    });
}

fn altered(fixture: &Fixture) {
    fixture.run(async {
        let store = FakeStore {
            altered: true,
            ..FakeStore::default()
        };
        let runner = Arc::new(FakeRunner::default());
        let node = node(&runner, store);
        let action = action().file("twin", "content").file("other", "other");
        let response = node.execute(&action).await;
        let message = "the command altered its inputs, and ran again on copies";
        assert_eq!((code(&response), &*response.message), (0, message));
        assert_eq!(runner.runs.load(Relaxed), 2);
        // The twin is always a copy, and the second run has only copies.
        assert_eq!(node.store.links.load(Relaxed), 2);
        assert_eq!(node.store.copies.load(Relaxed), 1 + 3);
    });
}

fn altered_and_lost(fixture: &Fixture) {
    fixture.run(async {
        let store = FakeStore {
            altered: true,
            ..FakeStore::default()
        };
        let runner = Arc::new(FakeRunner {
            lost: 1,
            ..FakeRunner::default()
        });
        let node = node(&runner, store);
        node.succeed(&action()).await;
        assert_eq!(runner.runs.load(Relaxed), 2);
        let (links, copies) = (&node.store.links, &node.store.copies);
        assert_eq!((links.load(Relaxed), copies.load(Relaxed)), (1, 1));
    });
}

fn stalled_log(fixture: &Fixture) {
    fixture.run(async {
        let stalled = Arc::<Notify>::default();
        let store = FakeStore {
            stalls: Some(Arc::clone(&stalled)),
            ..FakeStore::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let runner = Arc::<LoggingRunner>::default();
        let node = Node::new(dir, Arc::new(store), runner, |_| {});
        let watch = node.submit(action().job(&*node.store).await);
        stalled.notified().await;
        assert!(node.scheduler.cancel(watch.operation()));
        node.is_clean().await;
    });
}

/// Needs root, which can read what the user of the action cannot.
fn secret(fixture: &Fixture) {
    fixture.run(async {
        if !has_users() {
            return;
        }
        let runner = Arc::<SecretRunner>::default();
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new(dir, Arc::<FakeStore>::default(), runner, |options| {
            options.first_user = Some(USER);
        });
        let response = node.execute(&action()).await;
        assert_eq!(code(&response), 9, "{response:?}");
        assert_eq!(response.result.unwrap().output_files, []);
        node.is_clean().await;
    });
}
