//! The frames of the hand-over, and their values.

use gorego_scheduler::{AttemptId, Need, Phase};
use reapi::gorego::{
    ResourceUsage,
    cluster::{Attempt, Done, Need as NeedFrame, done::End, progress, queued},
};

use super::entry::Offer;

/// Returns the frame of a need.
pub fn need_frame(need: Need) -> NeedFrame {
    match need {
        Need::Memory(memory) => NeedFrame {
            memory,
            alone: false,
        },
        Need::Alone => NeedFrame {
            memory: 0,
            alone: true,
        },
    }
}

/// Returns the need in a frame; the smallest one if it is missing.
pub fn need(frame: Option<&NeedFrame>) -> Need {
    match frame {
        Some(frame) if frame.alone => Need::Alone,
        frame => Need::Memory(frame.map_or(0, |frame| frame.memory)),
    }
}

/// Returns the frame of an attempt.
pub fn attempt_frame(attempt: AttemptId) -> Attempt {
    Attempt {
        execution: attempt.execution(),
        number: attempt.number(),
    }
}

/// Returns the attempt in a frame; `None` if it is missing.
pub fn attempt(frame: Option<&Attempt>) -> Option<AttemptId> {
    frame.map(|frame| AttemptId::new(frame.execution, frame.number))
}

/// Returns the phase with a number in a frame; `None` before the first, and for one of a newer version.
pub fn phase(number: u32) -> Option<Phase> {
    let at = usize::try_from(number).ok()?.checked_sub(1)?;
    Phase::ALL.get(at).copied()
}

/// Returns the number of a phase in frames.
pub fn phase_number(phase: Option<Phase>) -> u32 {
    let at = phase.and_then(|phase| Phase::ALL.iter().position(|other| *other == phase));
    at.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(0)
}

/// Returns the frame of the numbers of queued actions.
pub(super) fn count_frame(need: Need, offer: Offer) -> queued::Count {
    queued::Count {
        need: Some(need_frame(need)),
        actions: u32::try_from(offer.actions).unwrap_or(u32::MAX),
        left: offer.is_left,
    }
}

/// Returns the number of queued actions in a frame.
pub(super) fn count(frame: &queued::Count) -> (Need, usize) {
    let actions = usize::try_from(frame.actions).unwrap_or(usize::MAX);
    (need(frame.need.as_ref()), actions)
}

/// Returns the frame of a running attempt.
pub(super) fn running_frame(
    attempt: AttemptId,
    phase: Option<Phase>,
    run: u16,
    usage: Option<ResourceUsage>,
) -> progress::Running {
    progress::Running {
        attempt: Some(attempt_frame(attempt)),
        phase: phase_number(phase),
        run: run.into(),
        usage,
    }
}

/// Returns the end of an attempt without a response.
pub fn end_frame(attempt: AttemptId, end: End) -> Done {
    Done {
        attempt: Some(attempt_frame(attempt)),
        end: end.into(),
        ..Done::default()
    }
}
