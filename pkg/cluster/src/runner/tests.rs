//! Tests of whole nodes with scripted executors.

mod crashes;
mod dialects;
mod network;
mod nodes;
mod supervision;
