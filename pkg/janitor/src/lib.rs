//! Keeps a store within its limits: decides which entries to evict, and evicts them in small steps.

mod amount;
mod demand;
mod oldest;
mod plan;
mod run;
mod shortage;
mod totals;

pub use demand::Marks;
pub use run::{Janitor, Options};
pub use totals::Totals;
