//! Division of `limits.memory` into budgets.

use gorego_limits::Budget;
use gorego_proxy as proxy;
use gorego_server as server;

/// The most bytes of a request in addition to its blobs.
const FRAMING: u64 = 16 << 20;
/// The most calls in progress of all clients together. Further calls wait at the client.
const CALLS: u64 = 20_000;
/// The most files open for reads of large blobs and for uploads; at most half of the descriptors.
const FILES: u64 = 4096;
/// The memory for calls of other nodes, in addition to three batches.
const NODES: u64 = 64 << 20;

/// The budgets that share `limits.memory`.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) transport: gorego_grpc::Memory,
    pub(crate) server: server::Memory,
    pub(crate) proxy: proxy::Memory,
    /// Receive windows of downloads from the backing cache.
    pub(crate) downloads: Budget,
    /// Trees of action results, if there is no proxy.
    pub(crate) trees: Budget,
}

impl Parts {
    /// Divides `memory` bytes and `files` open files among the budgets that these tiers need. A batch of
    /// `batch` bytes and the largest response fit into their budgets.
    pub(crate) fn of(memory: u64, batch: u64, files: u64, local: bool, backing: bool) -> Self {
        let response = server::Limits::max_batch_response(batch);
        let percent = memory.saturating_sub(FRAMING + batch + response) / 100;
        // The shares of what is left, in percent: with a backing cache, and without.
        let bytes = |with, without| percent * if backing { with } else { without };
        let part = |what, with, without| Budget::memory(what, bytes(with, without));
        // Without a proxy, readers do not share downloads, and action results get the share of small blobs.
        let (results, fetched) = if local { (8, 12) } else { (14, 33) };
        let requests = FRAMING + batch + bytes(2, 4);
        let responses = response + bytes(6, 9);
        let pieces = part("memory for pieces of blobs", 4, 9);
        let trees = part("memory for trees", 4, 5);
        Self {
            transport: gorego_grpc::Memory {
                windows: part("memory for receive windows", 14, 32),
                calls: Budget::count("calls in progress", CALLS),
                requests: Budget::memory("memory for large requests", requests),
                decoded: part("memory for decoded requests", 14, 18),
                responses: Budget::memory("memory for large responses", responses),
            },
            server: server::Memory {
                files: Budget::count("open files", FILES.min(files / 2).max(1)),
                results: part("memory for action results", results, 12),
                walks: bytes(2, 2),
                workspaces: part("memory to compress in", 7, 9),
                pieces: pieces.clone(),
            },
            proxy: proxy::Memory {
                small: part("memory to fetch small blobs", 6, 0),
                large: part("memory to fetch large blobs", 15, 0),
                unwritten: part("memory for blobs that cannot be written", 4, 0),
                lookup_trees: trees.clone(),
                transfer_trees: part("memory for background results", 2, 0),
                pieces,
            },
            downloads: part("memory for downloads", fetched, 0),
            trees,
        }
    }
}

impl Parts {
    /// Creates the budgets for calls of other nodes, in addition to `limits.memory`. Calls of clients hold memory while
    /// they wait for another node. With shared memory, two nodes could wait for each other.
    pub(crate) fn of_nodes(batch: u64, files: u64) -> Self {
        let memory = batch.saturating_mul(3).saturating_add(NODES);
        Self::of(memory, batch, files / 2, true, false)
    }

    /// Returns the parts of the memory by their labels.
    pub(crate) fn named(&self) -> Vec<(&'static str, Budget)> {
        let Self {
            transport,
            server,
            proxy,
            downloads,
            trees,
        } = self;
        let all = [
            ("receive_windows", &transport.windows),
            ("large_requests", &transport.requests),
            ("decoded_requests", &transport.decoded),
            ("large_responses", &transport.responses),
            ("action_results", &server.results),
            ("compression", &server.workspaces),
            ("pieces", &server.pieces),
            ("small_fetches", &proxy.small),
            ("large_fetches", &proxy.large),
            ("unwritten", &proxy.unwritten),
            ("background_results", &proxy.transfer_trees),
            ("downloads", downloads),
            ("trees", trees),
        ];
        // Without a backing cache, some have no memory.
        let used = all.into_iter().filter(|(_, budget)| budget.total() > 0);
        used.map(|(name, budget)| (name, budget.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn total(parts: &Parts) -> u64 {
        let budgets = parts.named();
        let budgets = budgets.iter().map(|(_, budget)| budget.total());
        parts.server.walks + budgets.sum::<u64>()
    }

    #[test]
    fn budgets_add_up_to_the_memory_and_the_largest_batch_fits() {
        for (memory, batch) in [(160, 3), (70, 3), (64, 1), (1024, 3), (256, 64)] {
            for backing in [false, true] {
                let parts = Parts::of(memory * MIB, batch * MIB, 1024, true, backing);
                let total = total(&parts);
                assert!(
                    total <= memory * MIB && total > memory * MIB - 1000,
                    "{total}"
                );
                assert!(parts.transport.requests.total() >= batch * MIB + FRAMING);
                let response = server::Limits::max_batch_response(batch * MIB);
                assert!(parts.transport.responses.total() >= response);
                let nodes = Parts::of_nodes(batch * MIB, 1024);
                assert!(nodes.transport.windows.total() > 0);
                let stateless = Parts::of(memory * MIB, batch * MIB, 1024, false, backing);
                assert!(stateless.downloads.total() >= parts.downloads.total());
            }
        }
    }
}
