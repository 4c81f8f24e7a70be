//! The state of the circuit breaker in front of a backing cache, as metrics report it.

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls are made.
    Closed,
    /// Calls fail at once, until the cool-down is over and another call comes.
    Open,
    /// One call is made to see how it fares; others fail at once.
    HalfOpen,
}
