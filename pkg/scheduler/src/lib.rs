//! The scheduling of actions: which one starts next, on which worker, and what becomes of it.
//!
//! [`Scheduler`] is a state machine without I/O, tasks or clocks. Its caller passes the time with each event and carries
//! out the [`Effect`]s. Workers are passive here: the caller claims work for a free slot, and the scheduler grants it.

mod execution;
mod history;
mod ledger;
mod name;
mod operations;
mod queue;
mod scheduler;
mod state;
mod text;

pub use history::{History, Kind};
pub use ledger::{AttemptId, Capacity, WorkerId};
pub use name::{Generation, NameError, OperationId, OperationName};
pub use scheduler::{ListedAction, Scheduler, Totals};
pub use state::{
    ActionKey, Effect, End, Grant, Options, Outcome, Phase, Refused, Report, Request, Running,
    Stage, Time,
};
