//! The scheduling of actions: which one starts next, on which worker, and what becomes of it.
//!
//! [`Scheduler`] is a state machine without I/O, tasks or clocks. Its caller passes the time with each event and carries
//! out the [`Effect`]s. It knows workers by name only: the caller claims work for a free slot, and the scheduler grants
//! it. [`Runner`] is the caller for workers of this process, and [`Worker`] their trait.
//!
//! In a cluster, a node mirrors the queues of others as lines of its own queue ([`Scheduler::set_foreign`]), and grants
//! its queue to their claims ([`Scheduler::claim_for`]). The messages between nodes are not part of this crate.

mod execution;
mod history;
mod ledger;
mod name;
mod operations;
mod phases;
mod queue;
mod runner;
mod scheduler;
mod state;
mod table;
mod text;
mod watch;
mod worker;

pub use history::{History, Kind};
pub use ledger::{AttemptId, Capacity, WorkerId};
pub use name::{Generation, LogKind, LogName, NameError, OperationId, OperationName, Token};
pub use phases::Phases;
pub use queue::Need;
pub use runner::{Foreign, ForeignSlot, IdleSlot, Runner};
pub use scheduler::{
    Claimed, EndedAction, Ends, ForeignClaim, ListedAction, Scheduler, Taker, Totals,
};
pub use state::{
    ActionKey, Effect, End, Grant, Options, Outcome, Phase, Refused, Report, Request, Running,
    Stage, Time,
};
pub use watch::Watch;
pub use worker::{Attempt, ScriptedAttempt, ScriptedWorker, Worker};
