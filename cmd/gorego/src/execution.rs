//! The executor of a node.

mod entry;
mod isolation;
mod persistent;
mod preview;
mod report;
mod settings;
mod switch;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use gorego_cluster::runner::Cluster;
use gorego_config::{Config, LoadedConfig};
use gorego_execution::{
    BuildRootError, Executor, NodeWorker, Options, PeerPlatforms, ProbeError, VerifiedWorker,
};
use gorego_sandbox::{ControlGroups, Launcher, Level, Means};
use gorego_scheduler::{Generation, NameError};
use gorego_telemetry::{
    self as telemetry, AttemptCounts, MeteredWorker, builds::ExplainedWorker, web::ActionSource,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    isolation::{confinement, permitted},
    persistent::users,
    preview::preview,
    settings::{build_root, concurrency, first_user, is_worker, node, options},
    switch::{Start, start},
};
use crate::{
    actions,
    tiers::{ExecutorStores, Tiers},
};

/// The part of `limits.drain_timeout` in which actions may end; the rest is for their last messages.
const DRAIN: f64 = 0.8;

/// The error of an executor that cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "execution.uids = {0}: this container or user namespace has no users and groups up to {1}, one for each of \
         execution.concurrency and of the persistent workers; accepted: users that exist here, or execution.run_as_root: true"
    )]
    NoUsers(u32, u32),
    #[error(
        "execution.build_root: the users of actions have no access to {0}, whose mode is {1:03o}; accepted: a directory \
         below ones with x for all (chmod o+x), or execution.run_as_root: true"
    )]
    Unreachable(PathBuf, u32),
    #[error("{0}; execution.enabled: true executes them all the same")]
    Exposed(String),
    #[error("cannot start the launcher of actions: {0}")]
    Launcher(io::Error),
    #[error("execution.build_root: {0}")]
    Access(#[from] io::Error),
    #[error("execution.build_root: {0}")]
    BuildRoot(#[from] BuildRootError),
    #[error("{0}: {1}; accepted: this key unset,{2} or execution.sandbox.enabled: false")]
    NotIsolated(&'static str, String, &'static str),
    #[error(
        "execution.sandbox.binary_path: {0} cannot isolate actions: {1}; accepted: a program with the interface of Bazel's \
         linux-sandbox, or none"
    )]
    Program(PathBuf, String),
    #[error("execution.sandbox.writable_paths: {0}: {1}; accepted: paths that exist")]
    Writable(PathBuf, io::Error),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("cluster.node_id: {0}")]
    Node(#[from] NameError),
    #[error(
        "cluster.role: worker, but no actions are executed: {0}; accepted: execution.enabled: true, or the role node"
    )]
    IdleWorker(String),
}

/// Checks that all users can reach the directories in the build root.
fn check_access(build_root: &Path) -> Result<(), Error> {
    let build_root = fs::canonicalize(build_root)?;
    for dir in build_root.ancestors() {
        let mode = fs::metadata(dir)?.permissions().mode() & 0o777;
        if mode & 0o001 == 0 {
            return Err(Error::Unreachable(dir.to_owned(), mode));
        }
    }
    Ok(())
}

/// The executor of this node.
#[derive(Debug)]
pub(crate) struct LocalExecutor {
    pub(crate) executor: Arc<Executor>,
    /// The worker; `None` at an entry point, whose actions run on other nodes.
    worker: Option<Arc<NodeWorker>>,
    /// The verification of actions, which ends with the executor.
    tasks: TaskTracker,
    /// The counts of the attempts, if metrics are served.
    attempts: Option<Arc<AttemptCounts>>,
    /// The isolation of actions on this node.
    level: Option<Level>,
    drain: Duration,
    /// The limits of actions, as lines for the banner.
    limits: Vec<String>,
}

impl LocalExecutor {
    /// Creates the executor, if actions are executed. Counts its attempts if it is `metered`. Returns how actions are
    /// executed, or why they are not. A `node` of a cluster that executes none is an entry point. Fails if the
    /// configuration demands what cannot be had.
    pub(crate) async fn new(
        loaded: &LoadedConfig,
        start: Start,
        tiers: &Tiers,
        metered: bool,
        node: Option<(Generation, PeerPlatforms)>,
    ) -> Result<(Option<Self>, Result<Vec<String>, String>), Error> {
        let Some(stores) = tiers.executor.clone() else {
            return Ok((None, Err("there is no local cache".to_owned())));
        };
        let why = match start {
            Start::Off(why) => why,
            Start::On(launcher) => {
                let stores = stores.clone();
                let created = Self::create(loaded, launcher, stores, metered, node.clone());
                match created.await {
                    Ok(executor) => {
                        let how = executor.summary(&loaded.config);
                        return Ok((Some(executor), Ok(how)));
                    }
                    Err(error) => {
                        let why = switch::unless_set(&loaded.config, error)?;
                        tracing::warn!("actions are not executed: {why}");
                        why
                    }
                }
            }
        };
        match node {
            None => Ok((None, Err(why))),
            Some(node) => {
                let (executor, how) = Self::entry(&loaded.config, stores, metered, node, why)?;
                Ok((Some(executor), Ok(vec![how])))
            }
        }
    }

    async fn create(
        loaded: &LoadedConfig,
        launcher: Launcher,
        stores: ExecutorStores,
        metered: bool,
        node: Option<(Generation, PeerPlatforms)>,
    ) -> Result<Self, Error> {
        let config = &loaded.config;
        let mut options = options(config);
        let level = isolation::isolate(loaded, &launcher, &mut options).await?;
        let mut limits = vec![limits(launcher.control_groups(), &options)];
        limits.extend(confinement(&options));
        let generation = match node {
            Some((generation, platforms)) => {
                options.peer_platforms = Some(platforms);
                generation
            }
            None => first_generation(&options)?,
        };
        let ExecutorStores {
            worker: stores,
            lookups,
            misses,
        } = stores;
        let blobs = Arc::clone(&stores.blobs);
        let worker = Arc::new(NodeWorker::new(
            options.clone(),
            stores,
            Arc::new(launcher),
        )?);
        // The directory of an action with a root of its own is reached by gorego.
        if options.first_user.is_some() && !options.has_root() {
            check_access(&options.build_root)?;
        }
        let attempts = metered.then(Arc::<AttemptCounts>::default);
        let running = Arc::clone(&worker) as _;
        let running = match &attempts {
            Some(counts) => Arc::new(MeteredWorker::new(running, Arc::clone(counts))) as _,
            None => running,
        };
        let running = match misses {
            Some(misses) => Arc::new(ExplainedWorker::new(running, misses)) as _,
            None => running,
        };
        let (running, checks) = VerifiedWorker::new(running, config.execution.verify.get());
        let memory = Arc::clone(worker.memory());
        let executor = Executor::new(options, blobs, lookups, generation, Some(running), memory);
        let executor = if is_worker(config) {
            executor.for_nodes()
        } else {
            executor
        };
        let executor = Arc::new(executor);
        let tasks = TaskTracker::new();
        tasks.spawn(executor.verify(Arc::clone(&worker), checks));
        Ok(Self {
            executor,
            tasks,
            worker: Some(worker),
            attempts,
            level: Some(level),
            limits,
            drain: config.limits.drain_timeout.mul_f64(DRAIN),
        })
    }

    /// Returns how actions are executed, as lines for the banner. A worker executes none for clients.
    fn summary(&self, config: &Config) -> Vec<String> {
        let users = match first_user(config) {
            Some(first) => format!("as users from {first} on"),
            None => "as this user".to_owned(),
        };
        let level = self.level.as_ref().map(isolation::describe);
        let level = level.map_or_else(String::new, |(_, meaning)| meaning);
        let (concurrency, dir) = (concurrency(config), build_root(config));
        let dir = dir.display();
        let how =
            format!("executing up to {concurrency} actions at once in {dir}, {users}, {level}");
        let role = "for other nodes only (cluster.role: worker)".to_owned();
        let role = is_worker(config).then_some(role);
        [vec![how], self.limits.clone(), Vec::from_iter(role)].concat()
    }

    /// Returns the sources of the metrics, if they are served, and of the page.
    pub(crate) fn sources(&self) -> (Option<telemetry::Execution>, ActionSource) {
        (self.metrics(), actions::source(&self.executor))
    }

    fn metrics(&self) -> Option<telemetry::Execution> {
        let (executor, worker) = (Arc::clone(&self.executor), self.worker.clone());
        Some(telemetry::Execution {
            attempts: self.attempts.clone()?,
            level: self
                .level
                .as_ref()
                .map(|level| isolation::describe(level).0),
            read: Box::new(move || report::report(&executor, worker.as_deref())),
        })
    }

    /// Lets actions end once `shutdown` is cancelled, and stops those that take too long. Hands queued actions over to
    /// other nodes of the cluster.
    pub(crate) async fn run(&self, shutdown: &CancellationToken, cluster: Option<&Cluster>) {
        shutdown.cancelled().await;
        let begin = Instant::now();
        if let Some(cluster) = cluster {
            cluster.drain().await;
            self.executor.scheduler().hand_over(self.drain).await;
        }
        let left = || self.drain.saturating_sub(begin.elapsed());
        self.executor.shut_down(left()).await;
        if let Some(cluster) = cluster {
            // If the time runs out, the entry nodes queue these actions again.
            let _ = timeout(left(), cluster.finish_foreign()).await;
        }
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(worker) = &self.worker {
            worker.close().await;
        }
    }
}

/// Returns the means by which memory and processes of actions are limited, and what is therefore not contained.
fn limits(groups: &ControlGroups, options: &Options) -> String {
    let why = match groups {
        ControlGroups::Version(version) => {
            return format!("limiting memory and processes of actions by control groups {version}");
        }
        ControlGroups::None(why) => why,
    };
    let isolation = options.isolation.as_ref();
    // That of another program is not known to limit them.
    let is_limited = isolation.is_some_and(|it| !matches!(it.by, Means::Program(_)));
    let has_own_processes = options.first_user.is_some() || is_limited;
    let processes = if has_own_processes {
        "their processes by user"
    } else {
        "not their processes: a fork bomb is not contained"
    };
    format!("limiting memory of actions by polling, {processes} (no control groups: {why})")
}

/// Returns the current run of this node, which is in no cluster.
fn first_generation(options: &Options) -> Result<Generation, NameError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    Generation::new(&options.node, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_says_what_is_not_contained() {
        let mut options = options(&Config::default());
        options.first_user = None;
        let none = ControlGroups::None("none are mounted".to_owned());
        let line = limits(&none, &options);
        assert!(line.contains("a fork bomb is not contained") && line.contains("none are mounted"));
        options.first_user = Some(7);
        assert!(!limits(&none, &options).contains("fork bomb"));
        let groups = ControlGroups::Version("v2".to_owned());
        assert!(limits(&groups, &options).ends_with("control groups v2"));
    }
}
