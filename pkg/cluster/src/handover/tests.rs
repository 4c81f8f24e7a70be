//! The hand-over between nodes in virtual time: a world of schedulers, machines and links.

mod ahead;
mod cases;
mod limits;
mod orders;
mod runners;
mod simulation;

use super::simulation::world;
