//! Budgets for what calls hold in the transport.

use gorego_limits::Budget;

/// Budgets in the order in which a call reserves them: since none reserves an earlier one while it
/// holds a later one, no two calls wait for each other. Clones share them.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Bytes of requests that were sent and are not read yet, in connections' receive windows.
    pub windows: Budget,
    /// Calls that clients may have under way.
    pub calls: Budget,
    /// Encoded requests; at least as much as the largest.
    pub requests: Budget,
    /// The fields of requests.
    pub decoded: Budget,
    /// Responses, until the client has taken them.
    pub responses: Budget,
}

const MIB: u64 = 1024 * 1024;

impl Default for Memory {
    fn default() -> Self {
        Self {
            windows: Budget::memory("memory for receive windows", 32 * MIB),
            calls: Budget::count("room for calls", 20_000),
            requests: Budget::memory("memory for large requests", 20 * MIB),
            decoded: Budget::memory("memory for decoded requests", 24 * MIB),
            responses: Budget::memory("memory for large responses", 16 * MIB),
        }
    }
}

#[cfg(test)]
impl Memory {
    /// So many bytes of each kind.
    pub(crate) fn of_each(bytes: u64) -> Self {
        let memory = || Budget::memory("tests", bytes);
        Self {
            requests: memory(),
            decoded: memory(),
            responses: memory(),
            ..Self::default()
        }
    }
}
