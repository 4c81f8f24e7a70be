//! The backing cache: where it is, and how the cache in front of it behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::choice::{ClientAuth, Compression, OnOutage};
use crate::section::section;
use crate::{ByteSize, Headers, Target};

section! {
    /// The authoritative cache behind this one, which is read through and written through.
    BackingCache {
        /// Where it is: `grpcs://cache.example.com` (TLS), `grpc://host:port`, `host:port` (TLS if
        /// `backing_cache.tls.enabled`) or `unix:/path`. If empty, there is none. `user:password@` before
        /// the host is sent as a basic `authorization` header, unless `headers` have another one, and
        /// never shown.
        target: Option<Target> = None,
        /// How large blobs travel to and from it, where it can do that too.
        compression: Compression = Compression::None,
        /// How many times what failed for the moment is tried again, reads as well as writes.
        put_retry_count: u32 = 3,
        /// How long a call there may take, and 1 s more for each MiB; of downloads and uploads how
        /// long they may stand still.
        timeout: Duration = Duration::from_mins(1),
        /// How long a blob that it reported as present counts as present, and an action result is
        /// served locally before it is checked again; never beyond an outage. 0 asks every time.
        existence_ttl: Duration = Duration::from_mins(5),
        /// While it is down, what is here is served. What is not, and writes, fail (`fail`); or else
        /// (`degrade`) they are misses, and writes wait here until it is back, also over a restart; over a
        /// loss of power with `local_cache.sync: full`. What it then refuses to take stays here.
        on_outage: OnOutage = OnOutage::Fail,
        /// The room for pending writes, at most half of `local_cache.max_size_gb`. Beyond that writes fail.
        /// Pending writes are not evicted, and each takes 4 KiB more than its size.
        journal_max: ByteSize = ByteSize::from_gib(1),
        /// How long a pending write that the backing cache refuses is retried. Only time in which the
        /// backing cache accepts other writes counts: an outage, an expired key or a full disk does not.
        /// A write that is refused as invalid is not retried.
        outbox_retry: Duration = Duration::from_hours(24),
        /// Headers to send with each request: a mapping of names to values, or `name=value`
        /// separated by commas. Never shown.
        headers: Headers = Headers::default(),
        /// A file with more headers, one `name=value` in each line.
        headers_file: PathBuf = PathBuf::new(),
        /// The instance name to use there. If empty, action results keep the client's own, and blobs,
        /// which all instances share here, have none.
        instance_name: String = String::new(),
        /// Never write to it: what clients upload stays here.
        read_only: bool = false,
        /// Fetch the outputs of an action that are not here as soon as its result is a hit, in the
        /// background. Of one result at most 1 GiB, and a sixteenth of `local_cache.max_size_gb`.
        prefetch: bool = false,
    }
    sections { tls: BackingTls, }
}

section! {
    /// Encryption of the connections with the backing cache.
    BackingTls {
        /// Speak TLS with it. `grpcs://` does so by itself.
        enabled: bool = false,
        /// The certificate to show there (PEM). If empty, none is shown.
        cert_file: PathBuf = PathBuf::new(),
        /// The private key of that certificate (PEM).
        key_file: PathBuf = PathBuf::new(),
        /// The authorities that may have signed its certificate, or that itself if it is self-signed
        /// (PEM). If empty, those of the system.
        ca_file: PathBuf = PathBuf::new(),
        /// Has no effect: it is for servers, and accepted since files may have it.
        client_auth: ClientAuth = ClientAuth::None,
    }
    sections {}
}
