//! Checks of the section `backing_cache`.

use super::Findings;
use crate::backing::BackingCache;
use crate::choice::OnOutage;
use crate::schema::Config;

const LOCAL: &str = "local_cache.enabled";
const TARGET: &str = "backing_cache.target";
const TLS: &str = "backing_cache.tls.enabled";

impl Findings<'_> {
    pub(super) fn check_backing(&mut self, config: &Config) {
        let (backing, local) = (&config.backing_cache, &config.local_cache);
        let (on_outage, read_only) = ("backing_cache.on_outage", "backing_cache.read_only");
        let (journal_max, half) = ("backing_cache.journal_max", local.max_size_gb.bytes() / 2);
        if !local.enabled && backing.target.is_none() {
            let reason = "leaves no cache to serve from; accepted: true, or a backing_cache.target";
            self.refuse(&[LOCAL, TARGET], reason);
        } else if !local.enabled && backing.read_only {
            let reason = "leaves no cache to write to without a local cache; accepted: false";
            self.refuse(&[read_only, LOCAL], reason);
        }
        self.check_backing_tls(backing);
        if backing.timeout.is_zero() {
            let reason = "would end every call at once; accepted: more than 0";
            self.refuse(&["backing_cache.timeout"], reason);
        }
        let degrades = backing.on_outage == OnOutage::Degrade && backing.target.is_some();
        if degrades && !local.enabled {
            self.refuse(&[on_outage, LOCAL], "needs a local cache; accepted: fail");
        } else if degrades && self.is_given(journal_max) && backing.journal_max.bytes() > half {
            let reason = "leaves too little of the local cache; accepted: up to half of \
                          local_cache.max_size_gb";
            self.refuse(&[journal_max], reason);
        }
        if backing.prefetch && !local.enabled {
            self.warn(
                "backing_cache.prefetch",
                "has no effect without a local cache",
            );
        }
    }

    fn check_backing_tls(&mut self, backing: &BackingCache) {
        let Some(target) = &backing.target else {
            return;
        };
        let tls = &backing.tls;
        match target.tls {
            Some(true) if !tls.enabled && self.is_given(TLS) => {
                let reason =
                    "uses TLS, but backing_cache.tls.enabled is false; accepted: grpc:// or true";
                self.refuse(&[TARGET, TLS], reason);
            }
            Some(false) if tls.enabled => {
                let reason = "is plain text, but backing_cache.tls.enabled is true; accepted: \
                              grpcs:// or host:port";
                self.refuse(&[TARGET, TLS], reason);
            }
            _ => {}
        }
        let encrypted = target.tls.unwrap_or(tls.enabled);
        if !encrypted && target.authorization.is_some() {
            let reason = "sends its user and password in plain text; grpcs:// encrypts them";
            self.warn(TARGET, reason);
        }
        let [cert, key, ca] = [
            "backing_cache.tls.cert_file",
            "backing_cache.tls.key_file",
            "backing_cache.tls.ca_file",
        ];
        if !encrypted {
            let reason =
                "has no effect, since the connection to the backing cache is in plain text";
            return self.warn_of_given(&[cert, key, ca], reason);
        }
        for (file, other) in [(cert, key), (key, cert)] {
            if self.is_given(file) && !self.is_given(other) {
                self.refuse(&[file, other], &format!("needs {other}"));
            }
        }
    }
}
