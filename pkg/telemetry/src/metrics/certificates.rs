//! Metrics of the certificates in use.

use std::{collections::BTreeMap, fmt};

use gorego_tls::Certificate;

use super::encode::{Encoder, Metric};

const EXPIRY: Metric = Metric::seconds(
    "certificate_expiry",
    "The end of a certificate in a file of tls or backing_cache.tls, in Unix time.",
);

pub(super) fn encode(mut encoder: Encoder<'_>, certificates: Vec<Certificate>) -> fmt::Result {
    let labelled = certificates.into_iter().map(|found| {
        let file = found.file.to_string_lossy().into_owned();
        let labels = [
            ("role", found.role.to_owned()),
            ("file", file),
            ("subject", found.subject),
            ("serial", found.serial),
        ];
        (labels, found.expiry)
    });
    // A file may hold a certificate twice, but a series must not repeat.
    let unique: BTreeMap<_, _> = labelled.collect();
    if unique.is_empty() {
        return Ok(());
    }
    encoder.gauges(EXPIRY, unique)
}
