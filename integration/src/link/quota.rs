//! The numbers of bytes after which connections are cut.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::Direction;

/// The bytes that each connection may still deliver before it is cut.
#[derive(Debug)]
pub(super) struct Quotas {
    rng: fastrand::Rng,
    /// The range of a new connection's quota, by direction.
    given: [Option<RangeInclusive<u64>>; 2],
    /// The quotas by connection, in the order of opening.
    left: BTreeMap<u64, [Option<u64>; 2]>,
}

/// The bytes granted to a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Taken {
    /// The number of bytes to deliver.
    pub(super) bytes: usize,
    /// Whether the connection ends after them.
    pub(super) last: bool,
}

impl Quotas {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            given: [None, None],
            left: BTreeMap::new(),
        }
    }

    /// Gives each open or new connection a quota from the range, or removes the quotas.
    pub(super) fn set(&mut self, direction: Direction, range: Option<RangeInclusive<u64>>) {
        for left in self.left.values_mut() {
            left[direction as usize] = range.clone().map(|range| self.rng.u64(range));
        }
        self.given[direction as usize] = range;
    }

    /// Adds a connection.
    pub(super) fn open(&mut self, connection: u64) {
        let given = self.given.clone();
        let left = given.map(|range| range.map(|range| self.rng.u64(range)));
        self.left.insert(connection, left);
    }

    /// Removes a connection.
    pub(super) fn close(&mut self, connection: u64) {
        self.left.remove(&connection);
    }

    /// Takes up to `wanted` bytes from the quota of a connection.
    pub(super) fn take(&mut self, connection: u64, direction: Direction, wanted: usize) -> Taken {
        let left = self.left.get_mut(&connection);
        let Some(left) = left.and_then(|left| left[direction as usize].as_mut()) else {
            return Taken {
                bytes: wanted,
                last: false,
            };
        };
        let bytes = usize::try_from(*left).map_or(wanted, |left| left.min(wanted));
        *left -= u64::try_from(bytes).expect("a chunk's size");
        Taken {
            bytes,
            last: *left == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_delivers_exactly_its_quota() {
        let mut quotas = Quotas::new(0);
        quotas.open(1);
        let taken = |bytes, last| Taken { bytes, last };
        assert_eq!(quotas.take(1, Direction::Up, 100), taken(100, false));
        quotas.set(Direction::Up, Some(150..=150));
        quotas.open(2);
        assert_eq!(quotas.take(1, Direction::Up, 100), taken(100, false));
        assert_eq!(quotas.take(1, Direction::Down, 100), taken(100, false));
        assert_eq!(quotas.take(1, Direction::Up, 100), taken(50, true));
        assert_eq!(quotas.take(1, Direction::Up, 100), taken(0, true));
        assert_eq!(quotas.take(2, Direction::Up, 100), taken(100, false));
        quotas.set(Direction::Up, None);
        assert_eq!(quotas.take(2, Direction::Up, 100), taken(100, false));
    }

    #[test]
    fn the_same_seed_draws_the_same_quotas() {
        let draw = |seed| {
            let mut quotas = Quotas::new(seed);
            quotas.set(Direction::Down, Some(1..=1_000_000));
            (0..8).for_each(|id| quotas.open(id));
            let drawn = |id| quotas.take(id, Direction::Down, usize::MAX).bytes;
            (0..8).map(drawn).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
