//! The numbers of one moment.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gorego_storage as storage;
use serde::{Deserialize, Serialize};

use super::{actions::ActionTotals, status::Status};
use crate::{Calls, builds::BuildHead};

/// The numbers of one moment, as the overview and `/api/v1/status` show them.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Snapshot {
    /// The time, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The state of the server.
    pub status: Status,
    /// The totals since the start.
    pub traffic: Traffic,
    /// The numbers of actions; `None` if none are executed.
    #[serde(default)]
    pub actions: Option<ActionTotals>,
    /// The builds seen last, the last one first.
    pub builds: Vec<BuildHead>,
}

/// Totals since the start of the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Traffic {
    /// The lookups of each tier.
    pub lookups: Vec<Lookups>,
    /// The bytes of blobs that went through each tier.
    pub transfers: Vec<Transfer>,
    /// The calls of each method, except methods without a call.
    pub methods: Vec<MethodCalls>,
    /// The calls in progress.
    pub in_flight: u64,
}

/// The lookups of one kind in one tier.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Lookups {
    /// The tier: `client` for the answers that clients got, `local` or `backing`.
    pub tier: Cow<'static, str>,
    /// The kind: `blob` or `result`.
    pub kind: Cow<'static, str>,
    /// The lookups that found a blob or a complete result.
    pub hits: u64,
    /// The lookups that found nothing.
    pub misses: u64,
    /// The lookups that found a result without some of its outputs.
    pub incomplete: u64,
    /// The lookups that found nothing in the local tier while the backing cache did not answer.
    pub outage: u64,
    /// The lookups that failed.
    pub errors: u64,
}

/// The bytes of blobs that went through one tier.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Transfer {
    /// The tier, as in [`Lookups`].
    pub tier: Cow<'static, str>,
    /// The bytes read.
    pub read: u64,
    /// The bytes written.
    pub written: u64,
}

/// The calls of one method.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct MethodCalls {
    /// The name: `GetActionResult`; `other` for methods that do not exist.
    pub method: Cow<'static, str>,
    /// The calls that ended.
    pub calls: u64,
    /// The calls that ended with an error of the server.
    pub errors: u64,
    /// The median of the seconds that calls took, by estimate.
    pub p50_seconds: Option<f64>,
    /// The 99th percentile of these seconds, by estimate.
    pub p99_seconds: Option<f64>,
}

fn get(total: &AtomicU64) -> u64 {
    total.load(Relaxed)
}

impl Lookups {
    fn read(tier: &'static str, kind: &'static str, counts: &storage::Lookups) -> Self {
        Self {
            tier: tier.into(),
            kind: kind.into(),
            hits: get(&counts.hits),
            misses: get(&counts.misses),
            incomplete: get(&counts.incomplete),
            outage: get(&counts.outage),
            errors: get(&counts.errors),
        }
    }

    /// Returns the lookups that have an outcome other than an error.
    pub const fn answered(&self) -> u64 {
        self.hits
            .saturating_add(self.misses)
            .saturating_add(self.incomplete)
            .saturating_add(self.outage)
    }

    /// Returns the share of hits, from 0 to 1. `None` without a lookup.
    #[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.answered();
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

impl Traffic {
    /// Reads the totals of the tiers, by their labels, and of the calls.
    pub(super) fn read(tiers: &[(&'static str, Arc<storage::Traffic>)], calls: &Calls) -> Self {
        let lookups = tiers.iter().flat_map(|(tier, traffic)| {
            let kinds = [("blob", &traffic.blobs), ("result", &traffic.results)];
            kinds.map(|(kind, counts)| Lookups::read(tier, kind, counts))
        });
        let transfers = tiers.iter().map(|(tier, traffic)| Transfer {
            tier: (*tier).into(),
            read: get(&traffic.read),
            written: get(&traffic.written),
        });
        Self {
            lookups: lookups.collect(),
            transfers: transfers.collect(),
            methods: calls.requests.methods(),
            in_flight: calls.requests.in_flight(),
        }
    }

    /// Returns the totals of the lookups of clients, of all kinds.
    pub fn client_lookups(&self) -> (u64, u64) {
        let client = self.lookups.iter().filter(|found| found.tier == "client");
        client.fold((0, 0), |(hits, all), found| {
            (
                hits.saturating_add(found.hits),
                all.saturating_add(found.answered()),
            )
        })
    }

    /// Returns the bytes that clients read and wrote.
    pub fn client_bytes(&self) -> (u64, u64) {
        let client = self.transfers.iter().filter(|moved| moved.tier == "client");
        client.fold((0, 0), |(read, written), moved| {
            (
                read.saturating_add(moved.read),
                written.saturating_add(moved.written),
            )
        })
    }

    /// Returns the number of calls that ended.
    pub fn calls(&self) -> u64 {
        let calls = self.methods.iter().map(|method| method.calls);
        calls.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::web::{Components, Health};

    /// Returns a snapshot of a ready server with this traffic.
    pub(in crate::web) fn snapshot(traffic: Traffic) -> Snapshot {
        Snapshot {
            at_ms: 1_700_000_000_000,
            status: Status {
                version: "1.2.3".to_owned(),
                started: 1_699_999_000,
                uptime_seconds: 1000,
                readiness: Health::default().readiness(),
                components: Components::default(),
            },
            traffic,
            actions: None,
            builds: Vec::new(),
        }
    }
}
