//! Tests of links between nodes, on the loopback interface and on a simulated network.

mod chaos;
mod node;
mod refused;
mod silence;
pub(crate) mod simulated;
mod ups_and_downs;

use reapi::gorego::cluster::{Claim, Frame, Load, frame::Content};

use super::outbox::frame;

/// Creates a frame of work with a number.
fn claim(claim: u64) -> Frame {
    frame(Content::Claim(Claim { claim, need: None }))
}

/// Creates a frame of gossip.
fn gossip(len: usize) -> Frame {
    frame(Content::Gossip(vec![7; len].into()))
}

/// Creates the smallest frame of work.
fn load() -> Frame {
    frame(Content::Load(Load::default()))
}
