//! Hash tables that grow with the queue.

use std::{collections::HashMap, hash::Hash};

/// The entries up to which a table keeps its memory.
const SMALL: usize = 1024;

/// Returns the memory of a table that is mostly empty, to be called when entries were removed. So rarely does it shrink
/// that the cost for an entry is small.
pub(crate) fn shrink<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() > SMALL.max(8 * table.len()) {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_entries_are_removed_returns_its_memory() {
        let mut table: HashMap<u32, u32> = (0..100_000).map(|number| (number, number)).collect();
        for number in 0..100_000 {
            table.remove(&number);
            shrink(&mut table);
        }
        assert!(table.capacity() <= SMALL);
    }
}
