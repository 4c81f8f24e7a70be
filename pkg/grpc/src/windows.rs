//! Receive windows and numbers of calls of new connections, which shrink as connections become many.

use gorego_limits::{Budget, Permit};

use crate::Memory;

/// The most unread bytes of all requests of a connection: 160 MB/s over 50 ms.
const CONNECTION: u32 = 8 * 1024 * 1024;
/// The most unread bytes of one request. They bound a stream's speed (this much per round trip: 110 MB/s over
/// 20 ms, and several uploads run at a time) and the memory that an upload holds while the disk is behind.
const STREAM: u32 = 4 * 1024 * 1024;
/// The largest share of the free window memory that one connection takes, as a divisor.
const OF_WINDOWS: u64 = 4;
/// The windows of connections when little memory is left: for up to [`SOME`] connections, and for more. The latter is
/// the initial window of HTTP/2 and cannot be smaller.
const LEAST_OF_SOME: u32 = 256 * 1024;
const LEAST: u32 = 64 * 1024;
const SOME: usize = 128;

/// The largest frame, for clients that follow the server's wish. Large frames save reads and bookkeeping; even larger
/// ones gain nothing measurable.
const FRAME: u32 = 256 * 1024;

/// The most calls at once on one connection. Bazel runs up to 100.
const CALLS: u32 = 256;
/// The largest share of the free calls that one connection takes, as a divisor.
const OF_CALLS: u64 = 32;
const LEAST_CALLS: u32 = 16;

/// The share of a connection.
#[derive(Debug)]
pub(crate) struct Windows {
    pub(crate) connection: u32,
    pub(crate) stream: u32,
    /// The largest frame, which is in memory as a whole before it counts as received.
    pub(crate) frame: u32,
    pub(crate) calls: u32,
    _permits: [Permit; 2],
}

impl Windows {
    /// Takes the share of a new connection, one of `connections`.
    pub(crate) fn new(memory: &Memory, connections: usize) -> Self {
        let least = if connections <= SOME {
            LEAST_OF_SOME
        } else {
            LEAST
        };
        let (connection, window) = share(&memory.windows, CONNECTION, OF_WINDOWS, least);
        let (calls, running) = share(&memory.calls, CALLS, OF_CALLS, LEAST_CALLS);
        Self {
            connection,
            stream: (connection / 2).clamp(LEAST, STREAM),
            frame: connection.min(FRAME),
            calls,
            _permits: [window, running],
        }
    }
}

fn share(budget: &Budget, most: u32, divisor: u64, least: u32) -> (u32, Permit) {
    let permit = budget.share(most.into(), divisor);
    let bytes = u32::try_from(permit.bytes()).unwrap_or(most);
    (bytes.max(least), permit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1024 * 1024;

    #[test]
    fn few_connections_get_wide_windows_and_many_share_the_budget() {
        let memory = Memory::default();
        let windows: Vec<_> = (1..=300).map(|n| Windows::new(&memory, n)).collect();
        let first = &windows[0];
        assert_eq!((first.connection, first.stream), (8 * MIB, 4 * MIB));
        assert_eq!((first.frame, first.calls), (MIB / 4, 256));
        assert!(windows[2].connection > 4 * MIB);
        let (some, many) = (&windows[100], &windows[299]);
        assert_eq!((some.connection, some.stream), (MIB / 4, MIB / 8));
        let window = many.connection;
        assert_eq!([window, many.stream, many.frame], [64 * 1024; 3]);
        let all: u32 = windows.iter().map(|windows| windows.connection).sum();
        assert!(all < 80 * MIB, "{all}");
        let calls: u32 = windows.iter().map(|windows| windows.calls).sum();
        assert!(calls < 25_000, "{calls}");
        drop(windows);
        assert_eq!(Windows::new(&memory, 1).connection, 8 * MIB);
    }
}
