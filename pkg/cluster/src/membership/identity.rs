//! The identity of a node in the membership protocol.

use std::sync::Arc;

use gorego_scheduler::Generation;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{
    choice::score,
    record::{Record, check_address},
};

/// A run of a node at an address. foca keeps one identity for each name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The hash of the name. Comparing it is faster than comparing names.
    key: u64,
    /// The order among identities of a name. It starts as the number of the generation, and grows when other nodes
    /// declared this one down by mistake.
    pub(super) rank: u64,
    pub(super) node: Generation,
    pub(super) address: Arc<str>,
}

impl Identity {
    pub(super) fn new(node: Generation, rank: u64, address: &str) -> Self {
        Self {
            key: key(node.node()),
            rank,
            node,
            address: address.into(),
        }
    }

    pub(super) fn of(record: &Record) -> Self {
        let node = record.node.clone();
        let rank = node.number();
        Self::new(node, rank, &record.address)
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// Returns whether both are the same run at the same address; their ranks may differ.
    pub(super) fn same_run(&self, other: &Self) -> bool {
        self.node == other.node && self.address == other.address
    }
}

/// Returns the key of the node `name`, which is the same in every version: keys order the nodes whose neighbours are
/// partners.
pub(super) fn key(name: &str) -> u64 {
    score(0, name)
}

impl foca::Identity for Identity {
    type Addr = u64;

    /// The membership renews an identity itself, since the new rank depends on the ranks of its rivals.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> u64 {
        self.key
    }

    /// Returns whether this identity wins. At one address, a later run replaces the former, since two processes cannot
    /// listen there. Elsewhere the rank decides.
    fn win_addr_conflict(&self, other: &Self) -> bool {
        let order = |it: &Self| {
            let number = it.node.number();
            (
                if self.address == other.address {
                    number
                } else {
                    0
                },
                it.rank,
                number,
            )
        };
        (order(self), &self.address) > (order(other), &other.address)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let node = &self.node;
        (node.node(), node.number(), self.rank, &*self.address).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (name, number, rank, address) = <(&str, u64, u64, &str)>::deserialize(deserializer)?;
        let node = Generation::new(name, number).map_err(D::Error::custom)?;
        check_address(address).map_err(D::Error::custom)?;
        Ok(Self::new(node, rank, address))
    }
}
