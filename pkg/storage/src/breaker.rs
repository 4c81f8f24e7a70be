//! The state of a circuit breaker.

/// The state of the circuit breaker of a backing cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls are made.
    Closed,
    /// Calls fail at once, until the first call after the cool-down.
    Open,
    /// One call probes the backing cache; others fail at once.
    HalfOpen,
}
