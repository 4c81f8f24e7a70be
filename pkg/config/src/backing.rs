//! The section `backing_cache`.

use std::path::PathBuf;
use std::time::Duration;

use crate::choice::{ClientAuth, Compression, OnOutage};
use crate::headers::Headers;
use crate::section::section;
use crate::size::ByteSize;
use crate::target::Target;

section! {
    /// The authoritative cache behind this one, read through and written through.
    BackingCache {
        /// The address: `grpcs://cache.example.com` (TLS), `grpc://host:port`, `host:port` (TLS if
        /// `backing_cache.tls.enabled`) or `unix:/path`. If empty, there is no backing cache.
        /// `user:password@` before the host is sent as a basic `authorization` header, unless `headers`
        /// has one, and is never shown.
        target: Option<Target> = None,
        /// The compression of large blobs on the way to and from the backing cache, if that supports it.
        compression: Compression = Compression::None,
        /// The number of retries after a temporary failure, of reads as well as writes.
        put_retry_count: u32 = 3,
        /// The longest time of a call, plus 1 s for each MiB; of a download or upload, the longest time
        /// without progress.
        timeout: Duration = Duration::from_mins(1),
        /// The time for which a blob that the backing cache reported counts as present, and an action
        /// result is served locally before it is checked again. Ends at an outage. 0 looks up every time.
        existence_ttl: Duration = Duration::from_mins(5),
        /// The behavior while the backing cache is down. Hits in the local cache are always served. With
        /// `fail`, everything else fails. With `degrade`, other reads are misses, and writes wait in the
        /// local cache until the backing cache is back, even across a restart, and across a power failure
        /// with `local_cache.sync: full`. Writes that it then rejects stay in the local cache.
        on_outage: OnOutage = OnOutage::Fail,
        /// The most that pending writes may hold, at most half of `local_cache.max_size_gb`; beyond that
        /// writes fail. Pending writes are not evicted, and each counts 4 KiB in addition to its size.
        journal_max: ByteSize = ByteSize::from_bytes(1 << 30),
        /// The time for which a pending write is retried that the backing cache refuses, but not as
        /// invalid. Only time in which the backing cache accepts other writes counts: an outage, an
        /// expired key or a full disk does not use it up.
        outbox_retry: Duration = Duration::from_hours(24),
        /// Headers of each request: a mapping of names to values, or `name=value` separated by commas.
        /// Never shown.
        headers: Headers = Headers::default(),
        /// A file with more headers, one `name=value` in each line.
        headers_file: PathBuf = PathBuf::new(),
        /// The instance name in requests to the backing cache. If empty, requests for action results
        /// have the client's, and requests for blobs, which all instances share, have none.
        instance_name: String = String::new(),
        /// Never writes to the backing cache: uploads of clients stay in the local cache.
        read_only: bool = false,
        /// Fetches the outputs of an action result in the background as soon as it is a hit: of one result
        /// at most 1 GiB and a sixteenth of `local_cache.max_size_gb`.
        prefetch: bool = false,
    }
    sections { tls: BackingTls, }
}

section! {
    /// TLS to the backing cache.
    BackingTls {
        /// Uses TLS. A `grpcs://` target always does.
        enabled: bool = false,
        /// The client certificate, followed by intermediate ones (PEM). If empty, none is shown.
        cert_file: PathBuf = PathBuf::new(),
        /// The private key of the client certificate (PEM).
        key_file: PathBuf = PathBuf::new(),
        /// The authorities to trust, or the backing cache's certificate if it is self-signed (PEM). If
        /// empty, the authorities of the system.
        ca_file: PathBuf = PathBuf::new(),
        /// Has no effect; accepted for files that use the same keys as `tls`.
        client_auth: ClientAuth = ClientAuth::None,
    }
}
