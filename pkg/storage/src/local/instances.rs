//! Numbers for instance names, so that an index entry names its instance in 24 bits.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use super::layout::InstanceHash;
use crate::{Error, Result};

/// How many instance names one store tells apart between two starts.
const MAX: usize = 1 << 16;
const _: () = assert!(MAX <= crate::index::INSTANCE_END as usize);

/// The instances that have, or had, an action result.
#[derive(Default)]
pub(super) struct Instances {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    numbers: HashMap<InstanceHash, u32>,
    hashes: Vec<InstanceHash>,
}

impl Instances {
    /// The instance's number, if it has one.
    pub(super) fn number(&self, hash: &InstanceHash) -> Option<u32> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .numbers
            .get(hash)
            .copied()
    }

    /// The instance's number; a new one when it has none.
    pub(super) fn intern(&self, hash: &InstanceHash) -> Result<u32> {
        if let Some(number) = self.number(hash) {
            return Ok(number);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let next = table.hashes.len();
        if let Some(number) = table.numbers.get(hash) {
            return Ok(*number);
        }
        let number = u32::try_from(next)
            .ok()
            .filter(|_| next < MAX)
            .ok_or_else(|| Error::Full {
                what: "another instance name".to_owned(),
                bytes: 0,
                why: format!("the action cache tells at most {MAX} instance names apart"),
            })?;
        table.hashes.push(*hash);
        table.numbers.insert(*hash, number);
        Ok(number)
    }

    /// The instance with this number.
    pub(super) fn hash(&self, number: u32) -> Option<InstanceHash> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.hashes.get(usize::try_from(number).ok()?).copied()
    }
}
