//! Faults of calls, and their frequency.

use bytes::{Bytes, BytesMut};
use tonic::{Code, Status};

use super::record::Method;

/// A fault of a call. A fault that does not apply to a method has no effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Any method: fails with this code, without an effect.
    Answer(Code),
    /// Any method: does nothing until it is released, then continues.
    Stall,
    /// `Read` and `Write`: stalls after this many bytes.
    StallAfter(usize),
    /// `Read` and `Write`: fails with this code after this many bytes. A write can be resumed.
    BreakAfter(usize, Code),
    /// `Read` and `BatchReadBlobs`: one bit of the byte at this offset is flipped (of the last byte, if
    /// there are fewer); in a batch, of the first blob.
    Corrupt(usize),
    /// `Read` and `BatchReadBlobs`: succeeds after this many bytes; in a batch, of the first blob.
    Truncate(usize),
    /// `Read` and `BatchReadBlobs`: this many bytes follow the content; in a batch, that of the first
    /// blob.
    Extend(usize),
    /// `Write`: reports the blob as stored, without reading or storing it.
    AlreadyThere,
}

/// The calls of a method that a fault happens to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Times {
    /// The next calls, as many as this.
    Next(u32),
    /// All calls.
    Always,
    /// Each call with this probability; the same calls for the same seed and order.
    Chance(f64),
}

/// The injected faults.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    rng: fastrand::Rng,
    rules: Vec<(Method, Times, Fault)>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            rules: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, method: Method, times: Times, fault: Fault) {
        self.rules.push((method, times, fault));
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Returns the fault of the next call.
    pub(super) fn next(&mut self, method: Method) -> Option<Fault> {
        let Self { rng, rules } = self;
        let due = |(of, times, _): &(Method, Times, Fault)| {
            *of == method
                && match times {
                    Times::Next(left) => *left > 0,
                    Times::Always => true,
                    Times::Chance(probability) => rng.f64() < *probability,
                }
        };
        let at = rules.iter().position(due)?;
        let (_, times, fault) = &mut rules[at];
        if let Times::Next(left) = times {
            *left -= 1;
        }
        Some(*fault)
    }
}

/// A step of a stream.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Sends bytes.
    Send(Bytes),
    /// Waits until the call is released.
    Stall,
    /// Ends with an error.
    Fail(Status),
    /// Ends without an error.
    Done,
}

impl Fault {
    /// Applies the fault to the content of a message or a stream.
    pub(super) fn spoil(self, content: Bytes) -> Bytes {
        match self {
            Self::Corrupt(place) => {
                let mut content = BytesMut::from(content);
                let place = place.min(content.len().saturating_sub(1));
                if let Some(byte) = content.get_mut(place) {
                    *byte ^= 1;
                }
                content.freeze()
            }
            Self::Truncate(size) => content.slice(..size.min(content.len())),
            Self::Extend(more) => {
                let mut content = BytesMut::from(content);
                content.resize(content.len() + more, b'x');
                content.freeze()
            }
            _ => content,
        }
    }

    /// Returns the offset at which a stream stops, and the step that stops it.
    pub(super) fn stop(self) -> Option<(usize, Step)> {
        match self {
            Self::StallAfter(bytes) => Some((bytes, Step::Stall)),
            Self::BreakAfter(bytes, code) => Some((bytes, Step::Fail(injected(code)))),
            _ => None,
        }
    }
}

/// Creates the error of a fault.
pub(super) fn injected(code: Code) -> Status {
    Status::new(code, "injected by the test")
}

/// Returns the steps of a `Read` of `content` in pieces of `piece` bytes.
pub(super) fn script(fault: Option<Fault>, content: Bytes, piece: usize) -> Vec<Step> {
    let content = fault.map_or(content.clone(), |fault| fault.spoil(content));
    let mut steps = Vec::new();
    let mut rest = content;
    if let Some((at, step)) = fault.and_then(Fault::stop) {
        let before = rest.split_to(at.min(rest.len()));
        pieces(before, piece, &mut steps);
        steps.push(step);
    }
    if !matches!(steps.last(), Some(Step::Fail(_))) {
        pieces(rest, piece, &mut steps);
        steps.push(Step::Done);
    }
    steps
}

fn pieces(mut content: Bytes, piece: usize, steps: &mut Vec<Step>) {
    while !content.is_empty() {
        let next = content.split_to(piece.min(content.len()));
        steps.push(Step::Send(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fault_that_was_injected_first_happens_first() {
        let mut faults = Faults::new(0);
        faults.add(Method::Read, Times::Next(2), Fault::Stall);
        faults.add(Method::Read, Times::Always, Fault::Truncate(0));
        faults.add(Method::Write, Times::Next(1), Fault::AlreadyThere);
        let mut read = || faults.next(Method::Read).unwrap();
        assert_eq!([read(), read(), read(), read()], {
            let rest = Fault::Truncate(0);
            [Fault::Stall, Fault::Stall, rest, rest]
        });
        assert_eq!(faults.next(Method::Write), Some(Fault::AlreadyThere));
        assert_eq!(faults.next(Method::Write), None);
        assert_eq!(faults.next(Method::GetTree), None);
    }

    #[test]
    fn random_faults_are_the_same_for_the_same_seed() {
        let draw = |seed| {
            let mut faults = Faults::new(seed);
            faults.add(Method::Read, Times::Chance(0.5), Fault::Stall);
            let calls = (0..64).map(|_| faults.next(Method::Read).is_some());
            calls.collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).contains(&true) && draw(1).contains(&false));
    }
}
