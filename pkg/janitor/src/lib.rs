//! Keeps a store within its limits: decides which entries to evict, and evicts them in small steps.

mod amount;
mod counters;
mod demand;
mod oldest;
mod plan;
mod run;
mod shortage;

pub use amount::Amount;
pub use counters::Counters;
pub use demand::{Demand, Marks};
pub use plan::{Plan, Planner};
pub use run::{Janitor, Options};
