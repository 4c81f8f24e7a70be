//! Division of the process's file descriptors between connections and files.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors reserved for other purposes: metrics, the backing cache, the runtime and the log.
const OVERHEAD: u64 = 128;
/// The least number of open files, unless that leaves fewer descriptors for connections. Small reads and
/// writes open a file only briefly.
const LEAST_FILES: u64 = 256;

/// The connections of a node: a link, two for blobs, and one for calls about operations. Those that replace others are
/// among the handshakes.
const PER_NODE: u64 = 4;
/// Connections at the port for nodes whose handshake has not ended.
const HANDSHAKES: u64 = 64;
/// The divisor of the descriptors: connections from nodes get at most the quotient, and those to nodes as many.
const NODES_SHARE: u64 = 8;

/// The numbers of descriptors for connections and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Connections of clients.
    pub(crate) connections: usize,
    /// Connections from other nodes. As many descriptors are reserved for connections to them.
    pub(crate) nodes: usize,
    /// Files of blobs and results.
    pub(crate) files: u64,
}

impl Descriptors {
    /// Raises the process's limit to its maximum and divides it. Logs a warning if fewer connections fit
    /// than are configured, or than other nodes need. `max_nodes` is the number of nodes of the cluster; 0 without one.
    pub(crate) fn claim(max_connections: u32, max_nodes: u32) -> Self {
        let limit = raise();
        let divided = Self::divide(limit, max_connections, max_nodes);
        let Self {
            connections,
            nodes,
            files,
        } = divided;
        if u64::try_from(nodes).unwrap_or(u64::MAX) < of_nodes(max_nodes) {
            tracing::warn!(
                "other nodes get {nodes} connections, too few for cluster.max_nodes = {max_nodes}: the process may open \
                 {limit} file descriptors; raise its hard limit, or lower cluster.max_nodes"
            );
        }
        if connections < usize::try_from(max_connections).unwrap_or(usize::MAX) {
            tracing::warn!(
                "limits.max_connections = {max_connections} is reduced to {connections}: the process \
                 may open {limit} file descriptors, of which files need {files}; raise its hard limit \
                 (LimitNOFILE= of systemd, --ulimit nofile= of Docker, ulimit -Hn)"
            );
        }
        divided
    }

    fn divide(limit: u64, max_connections: u32, max_nodes: u32) -> Self {
        let usable = limit.saturating_sub(OVERHEAD).max(2);
        let nodes = of_nodes(max_nodes).min(usable / NODES_SHARE);
        let usable = usable - 2 * nodes;
        let files = (usable / 4).max(LEAST_FILES).min(usable / 2);
        let connections = u64::from(max_connections).min(usable - files);
        Self {
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            nodes: usize::try_from(nodes).unwrap_or(usize::MAX),
            files: usable - connections,
        }
    }
}

/// Returns the number of connections that other nodes need at most.
fn of_nodes(max_nodes: u32) -> u64 {
    match u64::from(max_nodes) {
        0 => 0,
        most => most * PER_NODE + HANDSHAKES,
    }
}

/// Raises the limit of file descriptors to the hard limit and returns the new one.
fn raise() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("failed to raise the limit of file descriptors: {error}");
        limit.current = before;
    }
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_their_limit_unless_files_need_the_descriptors() {
        for (limit, wanted, connections) in [
            (20_000, 10_000, 10_000),
            (u64::MAX, 10_000, 10_000),
            (4096, 10_000, 2976),
            (1024, 10_000, 640),
            (1024, 100, 100),
            (256, 10_000, 64),
            (10, 10_000, 1),
        ] {
            let divided = Descriptors::divide(limit, wanted, 0);
            assert_eq!(divided.connections, connections, "{limit}");
            assert!(
                divided.files >= connections.min(256) as u64,
                "{divided:?} of {limit}"
            );
        }
    }

    #[test]
    fn connections_of_nodes_leave_descriptors_for_clients_and_files() {
        for (limit, max_nodes, nodes) in [(20_000, 256, 1088), (20_000, 3, 76), (1024, 256, 112)] {
            let divided = Descriptors::divide(limit, 10_000, max_nodes);
            assert_eq!(divided.nodes, nodes, "{limit}");
            let others = (divided.connections + 2 * nodes) as u64;
            assert_eq!(others + divided.files + OVERHEAD, limit);
            assert!(
                divided.connections >= 256 && divided.files >= 256,
                "{divided:?}"
            );
        }
    }
}
