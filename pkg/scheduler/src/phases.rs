//! The phases of an attempt and their times.

use std::{num::NonZeroU32, time::Duration};

use crate::state::{Phase, Time};

/// The phases that an attempt has begun, by the milliseconds since its grant, plus one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases([Option<NonZeroU32>; Phase::ALL.len()]);

impl Phases {
    /// Records the beginning of a phase, at this time after the grant.
    pub(crate) fn begin(&mut self, phase: Phase, after: Time) {
        let ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        if let Some(began) = self.0.get_mut(phase as usize) {
            *began = NonZeroU32::new(ms.saturating_add(1));
        }
    }

    /// Records that an earlier phase goes on, so that later ones have not begun.
    pub(crate) fn return_to(&mut self, phase: Phase) {
        let later = self.0.get_mut(phase as usize + 1..);
        later.unwrap_or_default().fill(None);
    }

    /// Returns the phases in their order, and how long each took; that of the last one is as if it ended at this time
    /// after the grant. Precise to a millisecond.
    pub fn durations(&self, after: Time) -> Vec<(Phase, Duration)> {
        let began = Phase::ALL.into_iter().zip(self.0);
        let began: Vec<_> = began
            .filter_map(|(phase, ms)| Some((phase, ms?.get() - 1)))
            .map(|(phase, ms)| (phase, Duration::from_millis(ms.into())))
            .collect();
        let ends = began.iter().skip(1).map(|(_, began)| *began);
        let ends = ends.chain([after]);
        let phases = began.iter().zip(ends);
        let took = phases.map(|((phase, began), end)| (*phase, end.saturating_sub(*began)));
        took.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_lasts_until_the_next_one_and_the_last_until_the_end() {
        let ms = Duration::from_millis;
        let mut phases = Phases::default();
        assert_eq!(phases.durations(ms(5)), []);
        phases.begin(Phase::Fetch, ms(0));
        phases.begin(Phase::Run, ms(10));
        phases.begin(Phase::Collect, ms(70));
        let expected = [
            (Phase::Fetch, ms(10)),
            (Phase::Run, ms(60)),
            (Phase::Collect, ms(30)),
        ];
        assert_eq!(phases.durations(ms(100)), expected);
        assert_eq!(phases.durations(ms(0))[2], (Phase::Collect, ms(0)));
        phases.return_to(Phase::Run);
        assert_eq!(phases.durations(ms(100))[1..], [(Phase::Run, ms(90))]);
    }
}
