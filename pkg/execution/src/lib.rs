//! The execution of actions (REAPI `Execution`): one action is checked, fetched, staged, run, collected and published.

mod failure;
mod inputs;
mod job;
mod options;

pub use failure::Failure;
pub use inputs::Inputs;
pub use job::Job;
pub use options::Options;
