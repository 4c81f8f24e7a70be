//! The execution of actions (REAPI `Execution`): one action is checked, fetched, staged, run, collected and published.

mod abort;
mod beneath;
mod collect;
mod failure;
mod inputs;
mod job;
mod logs;
mod options;
mod publish;
mod stage;
mod worker;

pub use failure::Failure;
pub use inputs::Inputs;
pub use job::Job;
pub use options::Options;
pub use worker::{BuildRootError, BuildRootFailure, NodeWorker, Runner, Stores};
