//! Spans of the operations of tiers, for traces. Operations for a call that is not traced have none.

pub use gorego_limits::TRACE as TARGET;
use tracing::{Instrument as _, Span, field::Empty, info_span};

use crate::{Digest, Error, Put, Result};

/// A tier of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The local disk.
    Local,
    /// The backing cache.
    Backing,
}

impl Tier {
    /// Creates the span of an operation on blobs or an action; none if the current call is not traced.
    pub fn span(self, operation: &str, digests: &[Digest]) -> Span {
        if Span::current().is_none() {
            return Span::none();
        }
        let (tier, kind) = match self {
            Self::Local => ("local", "internal"),
            Self::Backing => ("backing", "client"),
        };
        let span = info_span!(
            target: TARGET,
            "tier",
            otel.name = format!("{tier} {operation}"),
            otel.kind = kind,
            otel.status_code = Empty,
            tier,
            digest = Empty,
            blobs = digests.len(),
            size = digests.iter().map(Digest::size).sum::<u64>(),
            outcome = Empty,
        );
        if let [digest] = digests {
            span.record("digest", digest.to_string());
        }
        span
    }

    /// Runs an operation on blobs or an action in a span of its own.
    pub async fn traced<T: Outcome>(
        self,
        operation: &str,
        digests: &[Digest],
        work: impl Future<Output = T>,
    ) -> T {
        traced(&self.span(operation, digests), work).await
    }
}

/// Runs an operation in its span, and records its outcome.
pub async fn traced<T: Outcome>(span: &Span, work: impl Future<Output = T>) -> T {
    let ended = work.instrument(span.clone()).await;
    if !span.is_none() {
        let outcome = ended.outcome();
        span.record("outcome", outcome);
        if outcome == ERROR {
            span.record("otel.status_code", "ERROR");
        }
    }
    ended
}

const HIT: &str = "hit";
const MISS: &str = "miss";
const ERROR: &str = "error";

/// A result with a name for the outcome of its operation.
pub trait Outcome {
    /// Returns `hit`, `miss`, `incomplete`, `stored`, `existed`, `error`, or `partial` for several of them.
    fn outcome(&self) -> &'static str;
}

impl Outcome for Put {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Existed => "existed",
        }
    }
}

impl Outcome for () {
    fn outcome(&self) -> &'static str {
        "stored"
    }
}

/// Implements [`Outcome`] for contents.
macro_rules! hit {
    ($($type:ty),+) => {
        $(impl Outcome for $type {
            fn outcome(&self) -> &'static str {
                HIT
            }
        })+
    };
}

hit!(crate::Blob, bytes::Bytes, Digest, crate::CachedResult);

/// Missing blobs.
impl Outcome for Vec<Digest> {
    fn outcome(&self) -> &'static str {
        if self.is_empty() { HIT } else { MISS }
    }
}

impl<T: Outcome> Outcome for Result<T> {
    fn outcome(&self) -> &'static str {
        match self {
            Ok(value) => value.outcome(),
            Err(Error::NotFound(_) | Error::NoResult(_)) => MISS,
            Err(Error::Incomplete { .. }) => "incomplete",
            Err(_) => ERROR,
        }
    }
}

impl<T: Outcome> Outcome for Vec<Result<T>> {
    fn outcome(&self) -> &'static str {
        let mut outcomes = self.iter().map(Outcome::outcome);
        let first = outcomes.next().unwrap_or(HIT);
        if outcomes.all(|outcome| outcome == first) {
            first
        } else {
            "partial"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_several_blobs_are_one_or_partial() {
        let blob = crate::DigestFunction::Sha256.digest(b"blob");
        let (hit, miss) = (|| Ok(blob), || Err::<Digest, _>(Error::NotFound(blob)));
        assert_eq!(vec![hit(), hit()].outcome(), "hit");
        assert_eq!(vec![miss()].outcome(), "miss");
        assert_eq!(vec![hit(), miss()].outcome(), "partial");
        let down = Error::Unavailable("down".to_owned());
        assert_eq!(Err::<Put, _>(down).outcome(), "error");
        assert_eq!(Ok(vec![blob]).outcome(), "miss");
    }
}
