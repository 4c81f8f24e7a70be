//! Tests of whole nodes with scripted executors.

mod crashes;
mod dialects;
mod nodes;
mod supervision;
