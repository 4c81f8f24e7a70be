//! The hand-over between nodes in virtual time: a world of schedulers, machines and links.

mod cases;
mod orders;
mod rivals;
mod runners;
mod simulation;
mod world;
