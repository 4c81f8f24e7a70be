//! A node of tests: a store, a scheduler and a worker.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use gorego_execution::{IsolationOptions, Job, NodeWorker, Options, Runner, Stores};
use gorego_sandbox::{Launcher, Level, Means};
use gorego_scheduler::{
    self as scheduler, Capacity, End, OperationId, Request, Stage, Watch, WorkerId,
};
use gorego_storage::{ActionCache, ActionCacheExt as _, BlobStore, Digest, Links, MemoryStore};
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};
use reapi::v2::{self, ActionResult, ExecuteResponse};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::action::{Action, SHA256};

/// The time after which a test gives up.
const PATIENCE: Duration = Duration::from_mins(2);
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

pub(crate) struct Fixture {
    pub(crate) launcher: Arc<Launcher>,
    runtime: Runtime,
    /// Set if nodes isolate actions.
    pub(crate) is_isolated: bool,
    /// The first user of actions, if they have users of their own without isolation.
    first_user: Option<u32>,
}

impl Fixture {
    pub(crate) fn new(launcher: Launcher) -> Self {
        Self {
            launcher: Arc::new(launcher),
            runtime: Runtime::new().unwrap(),
            is_isolated: false,
            first_user: None,
        }
    }

    /// Gives each action of later nodes a user of its own.
    pub(crate) fn set_user(&mut self) {
        self.first_user = Some(USER);
    }

    /// Returns whether actions own their inputs.
    pub(crate) fn owns_inputs(&self) -> bool {
        self.first_user.is_none() && !(self.is_isolated && has_users())
    }

    /// Isolates the actions of later nodes, or returns why the system does not allow it.
    pub(crate) fn isolate(&mut self) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path().join("build"));
        isolate(&mut options);
        let level = self.run(gorego_execution::probe(&options, &self.launcher));
        match level.unwrap() {
            Level::Full => self.is_isolated = true,
            level => return Err(level.why().unwrap_or_default().to_owned()),
        }
        Ok(())
    }

    pub(crate) fn run<T>(&self, test: impl Future<Output = T>) -> T {
        let test = async {
            tokio::time::timeout(PATIENCE, test)
                .await
                .expect("too slow")
        };
        self.runtime.block_on(test)
    }

    /// A node with a store on disk and real processes.
    pub(crate) async fn node(&self) -> Node<LocalStore> {
        self.node_with(|_| {}).await
    }

    /// A node with a store on disk and this runner.
    pub(crate) async fn node_of(&self, runner: Arc<dyn Runner>) -> Node<LocalStore> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(local_options(dir.path())).await.unwrap());
        Node::new(dir, store, runner, self.change(|_| {}))
    }

    pub(crate) async fn node_with(&self, change: impl FnOnce(&mut Options)) -> Node<LocalStore> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(local_options(dir.path())).await.unwrap());
        let runner: Arc<dyn Runner> = Arc::clone(&self.launcher) as _;
        Node::new(dir, store, runner, self.change(change))
    }

    /// A node whose store holds so many bytes.
    pub(crate) async fn small_node(&self, max_bytes: u64) -> Node<LocalStore> {
        let dir = tempfile::tempdir().unwrap();
        let options = LocalOptions {
            max_bytes,
            wake_bytes: max_bytes,
            ..local_options(dir.path())
        };
        let store = Arc::new(LocalStore::open(options).await.unwrap());
        let runner: Arc<dyn Runner> = Arc::clone(&self.launcher) as _;
        Node::new(dir, store, runner, self.change(|_| {}))
    }

    fn change(&self, change: impl FnOnce(&mut Options)) -> impl FnOnce(&mut Options) {
        let (is_isolated, first_user) = (self.is_isolated, self.first_user);
        move |options| {
            options.first_user = first_user;
            change(options);
            if is_isolated {
                isolate(options);
            }
        }
    }

    /// A node with a store in memory and real processes.
    pub(crate) fn in_memory(&self, change: impl FnOnce(&mut Options)) -> Node<MemoryStore> {
        let runner: Arc<dyn Runner> = Arc::clone(&self.launcher) as _;
        Node::new(
            tempfile::tempdir().unwrap(),
            Arc::default(),
            runner,
            self.change(change),
        )
    }
}

fn local_options(dir: &Path) -> LocalOptions {
    LocalOptions {
        dir: dir.join("cache"),
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

fn options(build_root: PathBuf) -> Options {
    Options {
        first_user: None,
        isolation: None,
        confined_to: None,
        keeps_failed: false,
        node: "node".to_owned(),
        build_root,
        concurrency: 4,
        memory: GIB,
        max_processes: 4096,
        max_scratch_bytes: 1 << 30,
        min_free: 0,
        default_timeout: Duration::from_mins(1),
        max_timeout: Duration::from_mins(1),
        kill_delay: Duration::ZERO,
        peer_platforms: None,
        max_input_bytes: GIB,
        max_output_bytes: None,
        max_inline_bytes: 1 << 20,
        max_log_bytes: 1 << 20,
        lease: Duration::ZERO,
        environment: BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]),
        platform: BTreeMap::new(),
        ignore_unknown_platform: false,
        persistent: None,
        scheduler: scheduler_options(),
    }
}

/// Isolates actions, which as root need a user of their own. Without such users, isolation is refused.
fn isolate(options: &mut Options) {
    options.first_user = has_users().then_some(USER);
    options.isolation = Some(IsolationOptions {
        by: Means::Root,
        hide: vec!["/root".into(), "/home".into(), "/run".into()],
        writable: Vec::new(),
        shm_bytes: 1 << 20,
        network: false,
        allow_network: false,
    });
}

fn scheduler_options() -> scheduler::Options {
    scheduler::Options {
        queue_size: 100,
        abandon_after: PATIENCE,
        retain_completed: PATIENCE,
        max_completed: 100,
        max_completed_bytes: 1 << 30,
        max_retries: 2,
        max_losses: 2,
    }
}

pub(crate) struct Node<S> {
    pub(crate) store: Arc<S>,
    pub(crate) dir: TempDir,
    pub(crate) scheduler: scheduler::Runner<Job, ExecuteResponse>,
    next: AtomicU64,
}

/// The traits of a store.
pub(crate) trait Store: BlobStore + ActionCache + Links {}

impl<S: BlobStore + ActionCache + Links> Store for S {}

impl<S: Store> Node<S> {
    pub(crate) fn new(
        dir: TempDir,
        store: Arc<S>,
        runner: Arc<dyn Runner>,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let mut options = options(dir.path().join("build"));
        change(&mut options);
        let stores = Stores {
            blobs: Arc::clone(&store) as _,
            results: Arc::clone(&store) as _,
            links: Arc::clone(&store) as _,
        };
        let worker = NodeWorker::new(options, stores, runner).unwrap();
        let scheduler = scheduler::Runner::new(scheduler_options());
        let capacity = Capacity {
            slots: 4,
            memory: GIB,
        };
        scheduler.add_worker(WorkerId::new("node"), capacity, Arc::new(worker));
        Self {
            store,
            dir,
            scheduler,
            next: AtomicU64::new(1),
        }
    }

    pub(crate) fn build_root(&self) -> PathBuf {
        self.dir.path().join("build")
    }

    pub(crate) async fn execute(&self, action: &Action) -> ExecuteResponse {
        self.execute_job(action.job(&*self.store).await).await
    }

    pub(crate) async fn execute_job(&self, job: Job) -> ExecuteResponse {
        self.execute_needing(job, 1).await
    }

    /// Runs an action that needs this memory, in bytes.
    pub(crate) async fn execute_needing(&self, job: Job, memory: u64) -> ExecuteResponse {
        let mut watch = self.submit_needing(job, memory);
        loop {
            match watch.next().await.unwrap() {
                Stage::Completed(End::Outcome(outcome)) => return (*outcome).clone(),
                Stage::Completed(end) => panic!("{end:?}"),
                Stage::Queued | Stage::Executing(_) => {}
            }
        }
    }

    pub(crate) fn submit(&self, job: Job) -> Watch<Job, ExecuteResponse> {
        self.submit_needing(job, 1)
    }

    fn submit_needing(&self, job: Job, memory: u64) -> Watch<Job, ExecuteResponse> {
        let id = OperationId(self.next.fetch_add(1, Relaxed).into());
        let request = Request {
            key: Arc::clone(&job.key),
            do_not_cache: job.do_not_cache,
            build: String::new(),
            priority: 0,
            platform: "".into(),
            memory,
            target: String::new(),
            mnemonic: String::new(),
            job: Arc::new(job),
        };
        self.scheduler.submit(id, &request).unwrap()
    }

    /// Runs an action that has to succeed.
    pub(crate) async fn succeed(&self, action: &Action) -> ActionResult {
        let response = self.execute(action).await;
        assert_eq!(response.status, None, "{response:?}");
        let result = response.result.unwrap();
        let stderr = self.log(result.stderr_digest.as_ref()).await;
        assert_eq!((result.exit_code, stderr.as_str()), (0, ""));
        result
    }

    /// Runs an action that has to succeed, and returns its standard output.
    pub(crate) async fn stdout(&self, action: &Action) -> String {
        let result = self.succeed(action).await;
        self.log(result.stdout_digest.as_ref()).await
    }

    pub(crate) async fn log(&self, digest: Option<&v2::Digest>) -> String {
        match digest {
            Some(digest) => String::from_utf8(self.read(Some(digest)).await.to_vec()).unwrap(),
            None => String::new(),
        }
    }

    pub(crate) async fn read(&self, digest: Option<&v2::Digest>) -> Bytes {
        let digest = Digest::from_field(Some(SHA256), digest).unwrap();
        let blob = BlobStore::get(&*self.store, &digest, 0).await.unwrap();
        blob.into_bytes().await.unwrap()
    }

    /// Returns the cached result of an action.
    pub(crate) async fn cached(&self, action: &Action) -> Option<ActionResult> {
        let job = action.job(&*self.store).await;
        self.store.find("", &job.key.action).await.unwrap()
    }

    /// Waits until no directory of an action is left.
    pub(crate) async fn is_clean(&self) {
        let names = |dir: PathBuf| -> Vec<_> {
            let entries = fs::read_dir(dir).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let root = self.build_root();
        while names(root.clone()) != [".gorego-build-root", "trash"] {
            tokio::task::yield_now().await;
        }
        while !names(root.join("trash")).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    /// Cancels an action when the file `started` exists, and waits until it has ended.
    pub(crate) async fn cancel_when(&self, action: &Action, started: &Path) {
        let mut watch = self.submit(action.job(&*self.store).await);
        while !started.exists() {
            tokio::task::yield_now().await;
        }
        assert!(self.scheduler.cancel(watch.operation()));
        while watch.next().await.is_some() {}
        self.is_clean().await;
    }

    /// Runs an action that has to succeed, like a client that uploads missing inputs again.
    pub(crate) async fn insist(&self, action: &Action) -> ActionResult {
        let response = self.execute(action).await;
        if code(&response) != 9 {
            assert_eq!(response.status, None, "{response:?}");
            return response.result.unwrap();
        }
        self.succeed(action).await
    }
}

/// Returns the code of a response.
pub(crate) fn code(response: &ExecuteResponse) -> i32 {
    response.status.as_ref().map_or(0, |status| status.code)
}

/// The first user that actions run as, where they have users of their own.
pub(crate) const USER: u32 = 61_184;

/// Returns whether commands can be started as [`USER`].
pub(crate) fn has_users() -> bool {
    gorego_sandbox::has_users(&(USER..USER + 1))
}
