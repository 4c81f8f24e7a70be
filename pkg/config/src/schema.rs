//! The keys of gorego: names, types, defaults and documentation.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::ListenAddr;
use crate::backing::BackingCache;
use crate::choice::{ClientAuth, InferredFunction, LogLevel, Sync, TracingProtocol, Ui};
use crate::cluster::Cluster;
use crate::endpoint::Endpoint;
use crate::execution::Execution;
use crate::headers::Headers;
use crate::section::section;
use crate::size::{ByteSize, GibSize};

section! {
    /// The whole configuration.
    Config {
        /// The address for clients. `:50051` listens on all interfaces.
        listen_addr: ListenAddr = ListenAddr { host: None, port: 50051 },
        /// Writes a blob's last use to its file at each hit. If not, last uses are kept in memory and
        /// written in batches, which also works on `noatime` mounts.
        force_update_atime: bool = false,
        /// The lowest level of messages that are logged. `RUST_LOG` refines it.
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
    /// TLS for clients.
    Tls {
        /// Requires TLS on `listen_addr`. Needs `cert_file` and `key_file`.
        enabled: bool = false,
        /// The server's certificate, followed by intermediate ones (PEM).
        cert_file: PathBuf = PathBuf::new(),
        /// The private key of the certificate (PEM).
        key_file: PathBuf = PathBuf::new(),
        /// The authorities of client certificates, and self-signed client certificates to trust (PEM).
        ca_file: PathBuf = PathBuf::new(),
        /// The client certificates that are required. `verify_if_given` accepts clients without one,
        /// `require_and_verify` does not; both need `ca_file`. `request` is the same as `none`;
        /// `require` is refused, since it verifies nothing.
        client_auth: ClientAuth = ClientAuth::None,
    }
}

section! {
    /// The cache on the local disk.
    LocalCache {
        /// Keeps blobs on the local disk. Can be switched off only with a backing cache, which then
        /// answers every request.
        enabled: bool = true,
        /// The data directory. If empty: `/var/cache/gorego` for root, else `gorego` in
        /// `XDG_CACHE_HOME`, which defaults to `~/.cache`.
        dir: PathBuf = PathBuf::new(),
        /// The size limit, in GiB (2^30 bytes) unless a unit is given (`500MB`).
        max_size_gb: GibSize = GibSize::from_bytes(10 << 30),
        /// The share of `max_size_gb` above which eviction starts.
        high_watermark: f64 = 0.95,
        /// The share of `max_size_gb` at which eviction ends.
        low_watermark: f64 = 0.85,
        /// Eviction also starts when less than this is free on the file system. If other files fill the
        /// disk, half of the space left to the cache counts instead. Eviction ends if it frees nothing.
        /// 0 disables the check.
        min_free: ByteSize = ByteSize::from_bytes(1 << 30),
        /// The time for which a blob reported to a client is protected from eviction. Such blobs hold at
        /// most four fifths of the cache; beyond that the oldest are evicted. An upload that finds no
        /// other room evicts at most a tenth of the cache from them; beyond that it is refused.
        lease: Duration = Duration::from_hours(3),
        /// The time for which an uploaded blob is protected from eviction, at most as long as `lease`.
        upload_lease: Duration = Duration::from_mins(10),
        /// The time for which an interrupted upload can be resumed. Partial uploads are evicted in the
        /// same order as blobs. Together they hold at most a tenth of the cache; the newest alone may
        /// hold a quarter.
        upload_expiry: Duration = Duration::from_hours(24),
        /// The time in which every file is hashed once in the background, to find corrupt ones. 0 for
        /// never.
        scrub_period: Duration = Duration::from_hours(30 * 24),
        /// The sync to disk before a write is acknowledged: none, the file's content (`data`), or also its
        /// directory entry (`full`). A power failure may lose blobs that were not synced, but corrupt
        /// blobs are never served. Applies to writes that wait for a backing cache, too.
        sync: Sync = Sync::None,
    }
}

section! {
    /// The cache of action results.
    ActionCache {
        /// Lets clients store action results. If not, storing fails with `PERMISSION_DENIED`.
        updates: bool = true,
    }
}

section! {
    /// The resources that clients may use.
    Limits {
        /// The largest batch of blobs, as announced to clients; 64KiB to 64MiB. A response may be twice
        /// as large, which leaves room for the digests of blobs of 80 bytes and more. gRPC clients accept
        /// responses of up to 4MiB by default.
        max_batch_bytes: ByteSize = ByteSize::from_bytes(2 << 20),
        /// The largest accepted blob, as announced to clients. 0 for no limit.
        max_blob_size: ByteSize = ByteSize::from_bytes(0),
        /// The digest functions tried, in this order, for a hash of 64 digits if the client names none.
        /// An upload is stored under the function that its content matches; for large uploads that
        /// needs the local cache.
        inferred_functions: Vec<InferredFunction> =
            vec![InferredFunction::Sha256, InferredFunction::Blake3],
        /// The memory that all clients together can make the server hold in addition to the index:
        /// requests, responses, pieces of blobs, blobs fetched from a backing cache. At least 64MiB
        /// plus three times `max_batch_bytes`. When it is used up, calls wait up to 30 s.
        memory: ByteSize = ByteSize::from_bytes(160 << 20),
        /// The time without progress after which a transfer is ended. It can be resumed.
        idle_timeout: Duration = Duration::from_mins(1),
        /// The time that running calls get at shutdown. Keep it below the time after which the process
        /// is killed: 10 s with Docker, 30 s with Kubernetes by default.
        drain_timeout: Duration = Duration::from_secs(8),
        /// The most open connections. For a new one beyond that, a connection without a call is closed.
        max_connections: u32 = 10_000,
    }
}

section! {
    /// Metrics, the page and traces.
    Telemetry {
        /// The address of the metrics (`/metrics`) and the page, without TLS. If empty, neither is served. If the
        /// default is taken by another program, gorego logs a warning and serves neither.
        metrics_addr: Option<ListenAddr> = Some(ListenAddr { host: None, port: 9090 }),
        /// The clients that may see the page, its JSON and `/statusz` at `metrics_addr`: those on this machine
        /// (`local`), all (`on`) or none (`off`). `local` refuses requests with a `Forwarded` or `X-Forwarded-*`
        /// header of a proxy, and host names other than `localhost`, `127.0.0.1` and `[::1]`. `off` also records no
        /// builds, and removes those of earlier runs.
        ui: Ui = Ui::Local,
        /// Serves profiles of processor time to programs on this machine, for example to `go tool pprof
        /// 'http://localhost:9090/debug/pprof/profile?seconds=10'`. `ui` applies, too.
        pprof: bool = false,
        /// Regular expressions for the names of secrets: flags, environment variables, headers and platform
        /// properties. Their values are replaced by `[redacted]` before builds are recorded or shown. After a change of
        /// the list, so are all values of arguments, variables and properties in the builds of earlier runs. User
        /// information in URLs is always replaced, in logs and traces, too.
        redact: Vec<String> =
            vec!["(?i)token|secret|passw|key|auth|cookie|credential".to_owned()],
        /// The most disk space for recent builds, in `builds/` below `local_cache.dir`; not part of
        /// `local_cache.max_size_gb`. It includes the known actions and the evictions that explain misses, each up to a
        /// quarter. While the disk is full, builds stay in memory, and saving is retried each minute. 0 stores builds in
        /// memory only, and removes the files of earlier runs. In memory, builds take some 32 MiB at most in any case.
        history_max: ByteSize = ByteSize::from_bytes(64 << 20),
        /// The collector that traces are sent to (OTLP): `host:port` or `http://host:port` in plain text,
        /// `https://host` with TLS. If empty, there are no traces.
        tracing_endpoint: Option<Endpoint> = None,
        /// The protocol that the collector speaks: gRPC, usually at port 4317, or Protobuf over HTTP, at
        /// port 4318. HTTP requests go to `/v1/traces` below the path of the endpoint.
        tracing_protocol: TracingProtocol = TracingProtocol::Grpc,
        /// Headers for the collector: a mapping of names to values, or `name=value` separated by commas.
        /// Never shown.
        tracing_headers: Headers = Headers::default(),
        /// A file with more headers, one `name=value` in each line.
        tracing_headers_file: PathBuf = PathBuf::new(),
        /// The authorities to trust, or the collector's certificate if it is self-signed (PEM). If empty,
        /// the authorities of the system.
        tracing_ca_file: PathBuf = PathBuf::new(),
        /// The share of requests that are traced, from 0 to 1. A `traceparent` header of the client takes precedence:
        /// it decides whether its request is traced.
        tracing_sample_ratio: f64 = 0.01,
    }
}
