//! The effects of the membership, and the events for it.

use std::sync::Arc;

use bytes::Bytes;
use gorego_scheduler::Generation;

use crate::record::Record;

/// A demand of the membership on its caller, or news for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a packet to a node. Packets may be lost.
    Send {
        /// The node.
        to: Generation,
        /// The address of the node.
        address: Arc<str>,
        /// The packet, at most [`MAX_PACKET_LEN`](super::MAX_PACKET_LEN) bytes.
        packet: Bytes,
    },
    /// A node is a member.
    Up(Arc<Record>),
    /// The record of a member is new.
    Changed(Arc<Record>),
    /// A node that was up is no member any more.
    Down {
        /// The node.
        node: Generation,
        /// The reason.
        why: Departure,
    },
    /// Another node has the name of this one and is alive. It keeps the name, and this node has no peers. Repeated
    /// every few seconds while that is so.
    Conflict {
        /// The other run of the name.
        holder: Generation,
        /// The address of the other node.
        address: String,
    },
    /// The cluster is full. This node has no peers. Repeated about every 20 s while that is so.
    Full,
    /// This node joined again, after others declared it down, or after [`Conflict`](Self::Conflict) or
    /// [`Full`](Self::Full).
    Rejoined,
    /// A node is not admitted, since the cluster already has `max_nodes`. Sent once for each name.
    Refused(Generation),
}

/// The reason why a node is no member any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It has not answered for several seconds.
    Silent,
    /// It left, or another node declared it down.
    Reported,
    /// Another run has its name.
    Replaced,
    /// This node left the cluster: another has its name, or the cluster is full.
    Withdrawn,
}

/// The way in which a connection to a node was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// An open connection broke.
    Broken,
    /// The host refuses connections: the process is gone, or a firewall keeps this node away.
    Refused,
    /// A connection cannot be opened for another reason.
    Unreachable,
}

/// The state of a node, as [`Membership::members`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// The node answers.
    Alive,
    /// The node did not answer lately. It counts as a member.
    Suspect,
    /// The node is no member any more.
    Down,
}
