//! Hash tables that shrink once a long queue has ended.

use std::{collections::HashMap, hash::Hash};

/// The capacity up to which a table is not shrunk.
const SMALL: usize = 1024;

/// Shrinks a table that is mostly empty, to be called after a removal. It shrinks so rarely that the cost per entry is
/// small.
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
