//! The execution of actions (REAPI `Execution`): one action is checked, fetched, staged, run, collected and published.

mod action;
mod admit;
mod command;
mod executor;
mod failure;
mod inputs;
mod job;
mod names;
mod operation;
mod options;
mod platform;
#[cfg(test)]
mod testing;

pub use command::NODE_PROPERTIES;
pub use executor::{Execution, Executor, OperationPage};
pub use failure::Failure;
pub use inputs::Inputs;
pub use job::Job;
pub use operation::{CachedExecution, Watcher};
pub use options::Options;
