//! Which connection may still pass on how much.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::Direction;

/// What is left to each connection before it is cut.
#[derive(Debug)]
pub(super) struct Quotas {
    rng: fastrand::Rng,
    /// What a connection gets, by direction.
    given: [Option<RangeInclusive<u64>>; 2],
    /// By connection, in the order of their opening.
    left: BTreeMap<u64, [Option<u64>; 2]>,
}

/// What became of a request to pass bytes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Taken {
    /// How many of the bytes may pass.
    pub(super) bytes: usize,
    /// Whether the connection ends with them.
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

    /// Gives each connection, open or new, something from the range, or lets all pass.
    pub(super) fn set(&mut self, direction: Direction, range: Option<RangeInclusive<u64>>) {
        for left in self.left.values_mut() {
            left[direction as usize] = range.clone().map(|range| self.rng.u64(range));
        }
        self.given[direction as usize] = range;
    }

    /// Notes a new connection.
    pub(super) fn open(&mut self, connection: u64) {
        let given = self.given.clone();
        let left = given.map(|range| range.map(|range| self.rng.u64(range)));
        self.left.insert(connection, left);
    }

    /// Forgets it.
    pub(super) fn close(&mut self, connection: u64) {
        self.left.remove(&connection);
    }

    /// Asks to pass on `wanted` bytes of it.
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
    fn a_connection_passes_what_is_left_to_it_and_no_more() {
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
    fn the_same_seed_cuts_at_the_same_places() {
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
