//! A bound on the memory that large messages take up at once.

use tonic::Status;

use crate::shared::{Held, Pace, Patience, Shared};

/// Messages up to this size in bytes are not counted: they fit into what a stream may have in
/// flight anyway.
const UNCOUNTED: u64 = 64 * 1024;
/// What one shared unit stands for, in bytes.
const UNIT: u64 = 64 * 1024;

/// Memory that calls share. Whoever finds it used up waits, and meanwhile reads nothing from its
/// client, which flow control then holds back.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    memory: Shared,
    units: u32,
}

/// Memory set aside, until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit(Option<Held>);

impl Budget {
    /// A budget of `bytes`, at least enough for one message of `largest` bytes.
    pub(crate) fn new(bytes: u64, largest: u64, patience: Patience) -> Self {
        let units = u32::try_from(bytes.max(largest).div_ceil(UNIT)).unwrap_or(u32::MAX);
        Self {
            memory: Shared::new(units, patience),
            units,
        }
    }

    /// Waits until `bytes` are free and sets them aside.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Permit, Status> {
        if bytes <= UNCOUNTED {
            return Ok(Permit::default());
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let held = self.memory.take(units.min(self.units)).await?;
        Ok(Permit(Some(held)))
    }
}

impl Permit {
    /// Watches the client for whose message this is, if that is large.
    pub(crate) fn pace(&self) -> Option<Pace> {
        self.0.as_ref().map(Held::pace)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn large_messages_wait_for_their_turn_and_small_ones_do_not() {
        let budget = Budget::new(4 * UNIT, UNIT, Patience::ENDLESS);
        let first = budget.reserve(3 * UNIT).await.unwrap();
        assert!(budget.reserve(2 * UNIT).now_or_never().is_none());
        let _small = budget.reserve(UNCOUNTED).now_or_never().unwrap().unwrap();
        drop(first);
        let _second = budget.reserve(2 * UNIT).now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_message_larger_than_the_budget_gets_all_of_it() {
        let budget = Budget::new(4 * UNIT, UNIT, Patience::ENDLESS);
        let _all = budget.reserve(100 * UNIT).now_or_never().unwrap().unwrap();
        assert!(budget.reserve(2 * UNIT).now_or_never().is_none());
    }
}
