//! Settings of the executor.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use gorego_sandbox::{Level, Means};

use crate::PeerPlatforms;

/// Settings of the executor.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of this node in the metadata of results.
    pub node: String,
    /// The directory in which actions run. Its content is removed at the start.
    pub build_root: PathBuf,
    /// The most actions that run at once.
    pub concurrency: u32,
    /// The first of the users that actions run as, one for each action that runs at once. `None`: gorego's own user,
    /// which must be root otherwise.
    pub first_user: Option<u32>,
    /// The memory that running actions may use together, in bytes.
    pub memory: u64,
    /// The most processes and threads of an action.
    pub max_processes: u64,
    /// The most bytes that an action may write to disk.
    pub max_scratch_bytes: u64,
    /// The free bytes on the file system of the build root below which no action starts, at most one in 20.
    pub min_free: u64,
    /// The timeout of an action that names none.
    pub default_timeout: Duration,
    /// The longest timeout that an action may ask for.
    pub max_timeout: Duration,
    /// The time that a command gets to end after its timeout, before it is killed.
    pub kill_delay: Duration,
    /// The platforms of other nodes; `None` without a cluster.
    pub peer_platforms: Option<PeerPlatforms>,
    /// The most bytes of an action's inputs.
    pub max_input_bytes: u64,
    /// The most bytes of an action's outputs, if limited.
    pub max_output_bytes: Option<u64>,
    /// The most bytes of logs and output files that a response contains inline.
    pub max_inline_bytes: u64,
    /// The most bytes kept of each of stdout and stderr. Of a longer one, the head and the tail are kept.
    pub max_log_bytes: u64,
    /// The time for which the inputs of a waiting action are protected from eviction, again and again.
    pub lease: Duration,
    /// The variables that a command gets where it has none of that name.
    pub environment: BTreeMap<String, String>,
    /// The platform properties that this node has, in lists of accepted values. The value `*` accepts any.
    pub platform: BTreeMap<String, Vec<String>>,
    /// Set if actions with properties that this node does not have run nevertheless.
    pub ignore_unknown_platform: bool,
    /// The isolation of actions from the host. `None`: actions see what gorego sees. Only where [`crate::probe`] finds
    /// that the system allows it.
    pub isolation: Option<IsolationOptions>,
    /// The paths that actions may change beside their own directories, where they have no root of their own and the
    /// kernel has Landlock. `None`: all that their user can change.
    pub confined_to: Option<Vec<PathBuf>>,
    /// The settings of persistent workers. `None`: every action runs by itself.
    pub persistent: Option<PersistentOptions>,
    /// Set if the directories of the newest ten failed actions are kept, in the folder `failed` of the build root.
    pub keeps_failed: bool,
    /// The limits of the queue.
    pub scheduler: gorego_scheduler::Options,
}

impl Options {
    /// Sets the means of the isolation to those of a level. At [`Level::Plain`], removes the isolation.
    pub fn set_level(&mut self, level: &Level) {
        let by = match level {
            Level::Full => Means::Root,
            Level::External(program) => Means::Program(program.clone()),
            Level::Processes(_) => Means::Processes,
            Level::Plain(_) => {
                self.isolation = None;
                return;
            }
        };
        self.isolation
            .iter_mut()
            .for_each(|it| it.by.clone_from(&by));
    }

    /// Returns the paths to which an action with the directory `own` is confined.
    pub(crate) fn confined_to(&self, own: PathBuf) -> Option<Vec<PathBuf>> {
        let paths = self.confined_to.clone();
        paths.map(|paths| [paths, vec![own]].concat())
    }

    /// Returns whether actions have a root of their own, where all other files of the host are read-only.
    pub fn has_root(&self) -> bool {
        let isolation = self.isolation.as_ref();
        isolation.is_some_and(|isolation| isolation.by == Means::Root)
    }

    /// Returns the nice value of actions. The nodes of a cluster have to answer each other while actions use all
    /// processors.
    pub(crate) fn nice(&self) -> i32 {
        self.peer_platforms.as_ref().map_or(0, |_| NICE)
    }

    /// Returns the number of users that actions and persistent workers need.
    pub fn users(&self) -> u32 {
        let workers = self
            .persistent
            .as_ref()
            .map_or(0, |persistent| persistent.max);
        self.concurrency.saturating_add(workers)
    }

    /// Returns the memory that is reserved for idle persistent workers, in bytes. Running actions share the rest. An
    /// action that needs more than the rest gets all of the memory, after the idle workers have ended.
    pub fn idle_memory(&self) -> u64 {
        self.persistent
            .as_ref()
            .map_or(0, |_| self.memory / IDLE_SHARE)
    }
}

/// The nice value of actions in a cluster.
const NICE: i32 = 5;

/// The divisor of the memory: idle persistent workers may have the quotient.
const IDLE_SHARE: u64 = 4;

/// Settings of persistent workers.
#[derive(Clone, Debug)]
pub struct PersistentOptions {
    /// The most workers, idle or not.
    pub max: u32,
    /// The time after which an idle worker ends.
    pub idle_timeout: Duration,
    /// The most actions of a worker.
    pub max_uses: u32,
    /// The longest time without processor use before a new worker's first answer.
    pub silence: Duration,
}

/// Settings of the isolation of actions.
#[derive(Clone, Debug)]
pub struct IsolationOptions {
    /// The means of the isolation. [`Options::set_level`] limits them to what the system allows.
    pub by: Means,
    /// The paths that are empty in actions.
    pub hide: Vec<PathBuf>,
    /// The paths that stay writable.
    pub writable: Vec<PathBuf>,
    /// The most bytes in an action's `/dev/shm`.
    pub shm_bytes: u64,
    /// Set if actions have the network of the host.
    pub network: bool,
    /// Set if actions that ask for the network of the host have it ([`crate::Job::network`]).
    pub allow_network: bool,
}
