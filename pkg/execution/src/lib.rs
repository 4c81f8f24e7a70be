//! The execution of actions (REAPI `Execution`): one action is checked, fetched, staged, run, collected and published.

mod abort;
mod action;
mod admit;
mod beneath;
mod collect;
mod command;
mod counts;
mod environment;
mod executor;
mod failure;
mod found;
mod guest;
mod history;
mod inputs;
mod job;
mod leases;
mod live;
mod local;
mod logs;
mod names;
mod operation;
mod options;
mod origin;
mod platform;
mod publish;
mod script;
mod stage;
#[cfg(test)]
mod testing;
mod verify;
mod worker;

pub use command::{NODE_PROPERTIES, PackedCommand};
pub use counts::{Admissions, InputCounts, VerificationCounts};
pub use executor::{
    CurrentAction, Execution, Executor, GuestLog, Log, OperationPage, RecentAction,
};
pub use failure::Failure;
pub use gorego_scheduler::LogName;
pub use guest::{GuestAction, Publisher, decode_report, encode_report, failed_attempt};
pub use history::MemoryHistory;
pub use inputs::{Counted, Directories, Inputs};
pub use job::{Job, Network};
pub use live::{Live, LogReader};
pub use local::{LocalDir, LocalError, LocalOutput, LocalResult, read_job};
pub use operation::{CachedExecution, Watcher};
pub use options::{IsolationOptions, Options, PersistentOptions};
pub use origin::Origin;
pub use platform::{PeerPlatforms, accepts, properties};
pub use script::{quote, render};
pub use verify::{Checks, VerifiedWorker};
pub use worker::{
    BuildRootError, BuildRootFailure, NodeWorker, PersistentCounts, PersistentWish, ProbeError,
    Protocol, Runner, Stores, probe, remove_directory,
};
