//! Checks of ranges and of combinations of keys.

mod backing;
mod cluster;
mod execution;

use crate::choice::{ClientAuth, TracingProtocol};
use crate::schema::{Config, Limits, LocalCache, Telemetry, Tls};
use crate::size::ByteSize;
use crate::table::{Entry, Table};
use crate::value::Value as _;

/// The smallest batch: room for a few small blobs.
const MIN_BATCH: ByteSize = ByteSize::from_bytes(64 << 10);

/// The largest batch: with larger ones, a few messages could fill the server's memory.
const MAX_BATCH: ByteSize = ByteSize::from_bytes(64 << 20);

/// The least `limits.memory` in addition to a batch and its response, which may be twice as large: with
/// less, the largest requests would not fit.
const MIN_MEMORY: ByteSize = ByteSize::from_bytes(64 << 20);

/// The smallest local cache, in bytes. A smaller one would refuse nearly every blob.
const MIN_SIZE: u64 = 1024 * 1024;

/// Problems and warnings, each with the key, its value and the value's origin.
pub(crate) struct Findings<'a> {
    pub(crate) table: &'a Table,
    pub(crate) problems: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl Findings<'_> {
    /// Checks the configuration as a whole.
    pub(crate) fn check(&mut self, config: &Config) {
        self.check_tls(&config.tls);
        self.check_local_cache(&config.local_cache);
        self.check_limits(&config.limits);
        self.check_backing(config);
        self.check_tracing(&config.telemetry);
        self.check_execution(config);
        self.check_cluster(config);
    }

    fn is_given(&self, key: &str) -> bool {
        self.table.entry(key).is_some_and(Entry::is_given)
    }

    /// Refuses a combination of keys and names the first that a source gave. Does nothing if one of them
    /// is already refused: its value is then not what the user meant.
    fn refuse(&mut self, keys: &[&str], reason: &str) {
        let involved = || keys.iter().filter_map(|key| self.table.entry(key));
        if involved().any(|value| value.refused) {
            return;
        }
        let given = involved().find(|value| value.is_given());
        if let Some(blamed) = given.or_else(|| involved().next()) {
            self.problems.push(blamed.with_reason(reason));
        }
    }

    fn warn(&mut self, key: &str, reason: &str) {
        if let Some(value) = self.table.entry(key) {
            self.warnings.push(value.with_reason(reason));
        }
    }

    fn warn_of_given(&mut self, keys: &[&str], reason: &str) {
        for key in keys {
            if self.is_given(key) {
                self.warn(key, reason);
            }
        }
    }

    fn check_tls(&mut self, tls: &Tls) {
        let [cert, key, ca] = ["tls.cert_file", "tls.key_file", "tls.ca_file"];
        if !tls.enabled {
            let reason = "has no effect while tls.enabled is false";
            self.warn_of_given(&[cert, key, ca], reason);
            if tls.client_auth != ClientAuth::None {
                self.warn("tls.client_auth", reason);
            }
            return;
        }
        for file in [cert, key] {
            if !self.is_given(file) {
                self.refuse(&["tls.enabled", file], &format!("needs {file}"));
            }
        }
        match tls.client_auth {
            ClientAuth::Require => self.refuse(
                &["tls.client_auth"],
                "accepts any certificate, so it authenticates no client; \
                 accepted: require_and_verify with tls.ca_file, or none",
            ),
            ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify if !self.is_given(ca) => {
                let reason = "needs tls.ca_file to verify certificates with";
                self.refuse(&["tls.client_auth", ca], reason);
            }
            ClientAuth::Request => {
                let reason = "requests a certificate without verifying it; the same as none";
                self.warn("tls.client_auth", reason);
            }
            ClientAuth::None if self.is_given(ca) => {
                self.warn(ca, "has no effect while tls.client_auth is none");
            }
            ClientAuth::None | ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify => {}
        }
    }

    fn check_local_cache(&mut self, cache: &LocalCache) {
        if cache.max_size_gb.bytes() < MIN_SIZE {
            let reason = "leaves no room for blobs; accepted: 1MiB and more";
            self.refuse(&["local_cache.max_size_gb"], reason);
        }
        let (low, high) = ("local_cache.low_watermark", "local_cache.high_watermark");
        let mut in_range = true;
        for (key, mark) in [(low, cache.low_watermark), (high, cache.high_watermark)] {
            if !(mark > 0.0 && mark <= 1.0) {
                self.refuse(&[key], "accepted: more than 0, at most 1");
                in_range = false;
            }
        }
        if in_range && cache.low_watermark >= cache.high_watermark {
            let marks = format!("{} and {}", cache.low_watermark, cache.high_watermark);
            let reason = format!("low and high watermark are {marks}; accepted: low below high");
            self.refuse(&[low, high], &reason);
        }
    }

    fn check_limits(&mut self, limits: &Limits) {
        let (memory, batch) = ("limits.memory", "limits.max_batch_bytes");
        let batches = limits.max_batch_bytes.bytes().saturating_mul(3);
        let least = MIN_MEMORY.bytes().saturating_add(batches);
        if !(MIN_BATCH..=MAX_BATCH).contains(&limits.max_batch_bytes) {
            self.refuse(&[batch], "accepted: 64KiB to 64MiB");
        } else if limits.memory.bytes() < least {
            let reason = format!(
                "too little for the largest requests; accepted: {} and more, which is {} \
                 and three times {batch}",
                ByteSize::from_bytes(least).render(),
                MIN_MEMORY.render()
            );
            self.refuse(&[memory, batch], &reason);
        }
        let inferred = &limits.inferred_functions;
        let is_repeated = |(at, function)| inferred.iter().skip(at + 1).any(|f| f == function);
        if inferred.is_empty() || inferred.iter().enumerate().any(is_repeated) {
            let reason = "accepted: sha256, blake3 or both, each once";
            self.refuse(&["limits.inferred_functions"], reason);
        }
        if limits.idle_timeout.is_zero() {
            let reason = "would end every transfer at once; accepted: more than 0";
            self.refuse(&["limits.idle_timeout"], reason);
        }
        if limits.max_connections == 0 {
            let reason = "would refuse every client; accepted: 1 or more";
            self.refuse(&["limits.max_connections"], reason);
        }
    }

    fn check_tracing(&mut self, telemetry: &Telemetry) {
        let ratio = "telemetry.tracing_sample_ratio";
        if !(0.0..=1.0).contains(&telemetry.tracing_sample_ratio) {
            self.refuse(&[ratio], "accepted: 0 to 1");
        }
        let ca_file = "telemetry.tracing_ca_file";
        let mut headers = vec!["telemetry.tracing_headers_file"];
        if !telemetry.tracing_headers.0.is_empty() {
            headers.push("telemetry.tracing_headers");
        }
        let Some(collector) = &telemetry.tracing_endpoint else {
            headers.push(ca_file);
            let reason = "has no effect without telemetry.tracing_endpoint";
            return self.warn_of_given(&headers, reason);
        };
        if telemetry.tracing_protocol == TracingProtocol::Grpc && !collector.path.is_empty() {
            let reason = "gRPC has no path; accepted: a host and a port, or \
                          telemetry.tracing_protocol: http";
            self.refuse(&["telemetry.tracing_endpoint"], reason);
        }
        if !collector.tls {
            self.warn_of_given(
                &[ca_file],
                "has no effect on a connection in plain text; https:// encrypts it",
            );
            let reason = "sent in plain text; an https:// endpoint encrypts it";
            self.warn_of_given(&headers, reason);
        }
    }
}
