//! The settings of the server, from the configuration.

use std::{num::NonZeroU64, sync::Arc};

use gorego_config::{self as config, Config};
use gorego_grpc::Limits;
use gorego_server as server;
use gorego_storage::Chain;
use gorego_tls::ServerTls;
use tokio::sync::watch;

use crate::{descriptors::Descriptors, memory::Parts, metrics::CallObserver};

/// Divides the descriptors of the process among clients, other nodes and files.
pub(super) fn descriptors(config: &Config) -> Descriptors {
    let cluster = &config.cluster;
    let max_nodes = if cluster.enabled {
        cluster.max_nodes
    } else {
        0
    };
    Descriptors::claim(config.limits.max_connections, max_nodes)
}

/// Returns the division of the memory among the parts of the server.
pub(super) fn parts(config: &Config, descriptors: Descriptors) -> Parts {
    Parts::of(
        config.limits.memory.bytes(),
        config.limits.max_batch_bytes.bytes(),
        descriptors.files,
        config.local_cache.enabled,
        config.backing_cache.target.is_some() || config.cluster.enabled,
    )
}

/// Returns the settings of a server for clients, without an executor.
pub(super) fn options(
    (config, descriptors): (&Config, Descriptors),
    parts: Parts,
    tls: Option<watch::Receiver<ServerTls>>,
    healthy: watch::Receiver<bool>,
    observer: Arc<CallObserver>,
    chain: Arc<Chain>,
) -> server::Options {
    server::Options {
        transport: gorego_grpc::Options {
            limits: transport_limits(&config.limits, descriptors),
            memory: parts.transport,
            tls,
            healthy: Some(healthy),
            observer: Some(observer),
            ..gorego_grpc::Options::default()
        },
        limits: limits(&config.limits),
        memory: parts.server,
        ac_updates: config.action_cache.updates,
        // The stores try the functions, so that the answer to a client counts once.
        inferred_functions: Vec::new(),
        chain,
        executor: None,
        routes: None,
        takers: None,
        extension: None,
    }
}

fn limits(limits: &config::Limits) -> server::Limits {
    server::Limits {
        max_batch_bytes: limits.max_batch_bytes.bytes(),
        max_blob_size: NonZeroU64::new(limits.max_blob_size.bytes()),
    }
}

fn transport_limits(limits: &config::Limits, descriptors: Descriptors) -> Limits {
    Limits {
        idle_timeout: limits.idle_timeout,
        drain_timeout: limits.drain_timeout,
        max_connections: descriptors.connections,
        ..Limits::default()
    }
}
