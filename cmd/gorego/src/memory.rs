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

/// A share of the memory left after one batch and one response, in percent: with a backing cache, and
/// without.
#[derive(Clone, Copy)]
struct Share(u64, u64);

const WINDOWS: Share = Share(14, 32);
const REQUESTS: Share = Share(2, 4);
const DECODED: Share = Share(14, 18);
const RESULTS: Share = Share(8, 12);
const RESPONSES: Share = Share(6, 9);
const PIECES: Share = Share(4, 9);
const WORKSPACES: Share = Share(7, 9);
const WALKS: Share = Share(2, 2);
const TREES: Share = Share(4, 5);
const TRANSFER_TREES: Share = Share(2, 0);
const SMALL: Share = Share(6, 0);
const LARGE: Share = Share(15, 0);
const UNWRITTEN: Share = Share(4, 0);
const DOWNLOADS: Share = Share(12, 0);

impl Parts {
    /// Divides `memory` bytes and `files` open files among the budgets that these tiers need. A batch of
    /// `batch` bytes and the largest response fit into their budgets.
    pub(crate) fn of(memory: u64, batch: u64, files: u64, local: bool, backing: bool) -> Self {
        let response = server::Limits::max_batch_response(batch);
        let rest = memory.saturating_sub(FRAMING + batch + response);
        let bytes = |Share(with, without)| rest / 100 * if backing { with } else { without };
        let part = |what, share| Budget::memory(what, bytes(share));
        let pieces = part("memory for pieces of blobs", PIECES);
        let trees = part("memory for trees", TREES);
        let part_with = |what, shares: &[Share]| {
            let bytes = shares.iter().map(|share| bytes(*share)).sum();
            Budget::memory(what, bytes)
        };
        // Without a proxy, readers do not share downloads.
        let fetched: &[Share] = if local {
            &[DOWNLOADS]
        } else {
            &[DOWNLOADS, LARGE, UNWRITTEN, TRANSFER_TREES]
        };
        // Small blobs, too, are fetched by a proxy alone.
        let results: &[Share] = if local { &[RESULTS] } else { &[RESULTS, SMALL] };
        let requests = FRAMING + batch + bytes(REQUESTS);
        let responses = response + bytes(RESPONSES);
        Self {
            transport: gorego_grpc::Memory {
                windows: part("memory for receive windows", WINDOWS),
                calls: Budget::count("calls in progress", CALLS),
                requests: Budget::memory("memory for large requests", requests),
                decoded: part("memory for decoded requests", DECODED),
                responses: Budget::memory("memory for large responses", responses),
            },
            server: server::Memory {
                files: Budget::count("open files", FILES.min(files / 2).max(1)),
                results: part_with("memory for action results", results),
                walks: bytes(WALKS),
                workspaces: part("memory to compress in", WORKSPACES),
                pieces: pieces.clone(),
            },
            proxy: proxy::Memory {
                small: part("memory to fetch small blobs", SMALL),
                large: part("memory to fetch large blobs", LARGE),
                unwritten: part("memory for blobs that cannot be written", UNWRITTEN),
                lookup_trees: trees.clone(),
                transfer_trees: part("memory for background results", TRANSFER_TREES),
                pieces,
            },
            downloads: part_with("memory for downloads", fetched),
            trees,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn total(parts: &Parts) -> u64 {
        let Parts {
            transport,
            server,
            proxy,
            downloads,
            trees,
            ..
        } = parts;
        let budgets = [
            &transport.windows,
            &transport.requests,
            &transport.decoded,
            &server.results,
            &server.workspaces,
            &transport.responses,
            &server.pieces,
            &proxy.small,
            &proxy.large,
            &proxy.unwritten,
            &proxy.transfer_trees,
            downloads,
            trees,
        ];
        server.walks + budgets.into_iter().map(Budget::total).sum::<u64>()
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
                let stateless = Parts::of(memory * MIB, batch * MIB, 1024, false, backing);
                assert!(stateless.downloads.total() >= parts.downloads.total());
            }
        }
    }
}
