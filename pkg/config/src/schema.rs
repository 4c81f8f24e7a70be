//! The sections that this build makes use of. Key names, types, defaults and documentation stand
//! here and nowhere else.

use std::path::PathBuf;
use std::time::Duration;

use crate::backing::BackingCache;
use crate::choice::{ClientAuth, InferredFunction, LogLevel, Sync};
use crate::later::{Cluster, Execution};
use crate::section::section;
use crate::{ByteSize, GibSize, ListenAddr};

section! {
    /// The whole configuration.
    Config {
        /// Where clients connect. `:50051` listens on all interfaces.
        listen_addr: ListenAddr = ListenAddr::any(50051),
        /// Write a blob's last use to its file at each hit. Without it, last uses are kept in
        /// memory and written back in batches, which also works on `noatime` mounts.
        force_update_atime: bool = false,
        /// The least important messages that are still logged. `RUST_LOG` refines it.
        log_level: LogLevel = LogLevel::Info,
    }
    sections {
        tls: Tls,
        local_cache: LocalCache,
        action_cache: ActionCache,
        limits: Limits,
        backing_cache: BackingCache,
        telemetry: Telemetry,
        execution: Execution,
        cluster: Cluster,
    }
}

section! {
    /// Encryption of the connections with clients.
    Tls {
        /// Speak TLS, and nothing else, on `listen_addr`. Needs `cert_file` and `key_file`.
        enabled: bool = false,
        /// The server's certificate, followed by those between it and its authority (PEM).
        cert_file: PathBuf = PathBuf::new(),
        /// The private key of that certificate (PEM).
        key_file: PathBuf = PathBuf::new(),
        /// The authorities that sign the clients' certificates, and clients' self-signed ones (PEM). Needed to
        /// verify those.
        ca_file: PathBuf = PathBuf::new(),
        /// What is asked of a client's certificate. `verify_if_given` lets in clients without
        /// one, `require_and_verify` does not. `request` is the same as `none`; `require` is
        /// refused, since it verifies nothing.
        client_auth: ClientAuth = ClientAuth::None,
    }
    sections {}
}

section! {
    /// The cache on the local disk.
    LocalCache {
        /// Keep blobs on the local disk. Can be switched off only where there is a backing cache,
        /// which then answers everything.
        enabled: bool = true,
        /// Where. If empty: `/var/cache/gorego` for root, else `gorego` in `XDG_CACHE_HOME`,
        /// which by itself is `~/.cache`.
        dir: PathBuf = PathBuf::new(),
        /// How much it may hold, in GiB (2^30 bytes) unless a unit is given (`500MB`).
        max_size_gb: GibSize = GibSize::from_gib(10),
        /// Eviction starts when this share of `max_size_gb` is used.
        high_watermark: f64 = 0.95,
        /// Eviction ends when no more than this share of `max_size_gb` is used.
        low_watermark: f64 = 0.85,
        /// Eviction also starts when less than this is free on the file system, or, where others
        /// have filled it, less than half of what is left for the cache. It ends when it does not
        /// free anything there. 0 does without.
        min_free: ByteSize = ByteSize::from_gib(1),
        /// How long a blob reported to a client is protected from eviction. Such blobs hold at most
        /// four fifths of the cache; beyond that the oldest are evicted. An upload that finds no
        /// other room evicts at most a tenth of the cache from them; beyond that it is refused.
        lease: Duration = Duration::from_hours(3),
        /// How long a blob that was just uploaded is protected from eviction, at most as long as `lease`.
        upload_lease: Duration = Duration::from_mins(10),
        /// How long an interrupted upload can be resumed. Such uploads are evicted in the same
        /// order as blobs. Together they hold at most a tenth of the cache; the newest alone may
        /// hold a quarter.
        upload_expiry: Duration = Duration::from_hours(24),
        /// In which time every file is hashed once in the background, since disks forget. 0 never
        /// does it.
        scrub_period: Duration = Duration::from_hours(30 * 24),
        /// What a write waits for: nothing, the file's content on the disk (`data`), or its
        /// directory entry too (`full`). A power failure may lose blobs that nothing waited for, but
        /// wrong bytes are never served. The same goes for what waits for a backing cache.
        sync: Sync = Sync::None,
    }
    sections {}
}

section! {
    /// The cache of action results.
    ActionCache {
        /// Let clients store action results. If not, they are told `PERMISSION_DENIED`.
        updates: bool = true,
    }
    sections {}
}

section! {
    /// What clients may use up.
    Limits {
        /// The most that a batch of blobs may hold, as told to clients; 64KiB to 64MiB. A response may
        /// take twice that, which is room for the digests of blobs of 80 bytes and more. gRPC clients
        /// take responses of 4MiB, unless they are told to take more.
        max_batch_bytes: ByteSize = ByteSize::from_kib(2 * 1024),
        /// The largest blob taken, as told to clients. 0 for no limit.
        max_blob_size: ByteSize = ByteSize::from_bytes(0),
        /// The functions tried in this order for a hash of 64 digits if the client names none. An
        /// upload is stored under the function that its content matches; for large uploads that
        /// needs the local cache.
        inferred_functions: Vec<InferredFunction> =
            vec![InferredFunction::Sha256, InferredFunction::Blake3],
        /// The memory that all clients together can make the server hold in addition to the index:
        /// requests, responses, pieces of blobs, blobs fetched from a backing cache. At least 64MiB
        /// plus three times `max_batch_bytes`. When it is used up, calls wait up to 30 s.
        memory: ByteSize = ByteSize::from_kib(160 * 1024),
        /// A transfer that makes no progress for this long is ended. It can be resumed.
        idle_timeout: Duration = Duration::from_mins(1),
        /// How long running calls have to end at shutdown. Keep it below the time after which the
        /// process is killed: 10 s with Docker, 30 s with Kubernetes by default.
        drain_timeout: Duration = Duration::from_secs(8),
        /// How many connections may be open at once. For others, those without a call are closed.
        max_connections: u32 = 10_000,
    }
    sections {}
}

section! {
    /// What can be observed from outside.
    Telemetry {
        /// Where Prometheus finds the metrics (`/metrics`), without TLS. If empty, nowhere. If not
        /// given and taken by others, nowhere either.
        metrics_addr: Option<ListenAddr> = Some(ListenAddr::any(9090)),
        /// Where traces are sent (OTLP), for example `otel.example.com:4317`. If empty, nowhere.
        /// Not in this build.
        tracing_endpoint: String = String::new(),
    }
    sections {}
}
