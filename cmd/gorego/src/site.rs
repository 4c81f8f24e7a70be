//! The site at `telemetry.metrics_addr`: the numbers of all parts.

use std::{borrow::Cow, sync::Arc};

use gorego_config::{self as config, Config};
use gorego_storage::BreakerState;
use gorego_telemetry::{
    Calls, Execution, Metrics,
    builds::Builds,
    web::{self, ActionSource, Backing, Components, Health, Limits, Local, Site, Ui},
};
use gorego_tls::Certificate;

use crate::{
    cli::VERSION,
    mesh,
    tiers::{self, Tiers},
};

/// A function that lists the current certificates.
pub(crate) type Certificates = Arc<dyn Fn() -> Vec<Certificate> + Send + Sync>;

/// The sources of the metrics and the page of an executor.
type ExecutorSources = (Option<Execution>, ActionSource);

/// Returns the site of a server.
pub(crate) fn site(
    config: &Config,
    (tiers, executor, mesh): (&Tiers, Option<ExecutorSources>, Option<&mesh::Joined>),
    builds: Option<Builds>,
    health: Health,
    calls: Calls,
    certificates: Certificates,
    spans_dropped: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
) -> Site {
    let listed = Arc::clone(&certificates);
    let mut sources = tiers.sources(calls.clone(), move || listed());
    sources.spans_dropped = spans_dropped;
    let (execution, actions) = executor.unzip();
    sources.execution = execution.flatten();
    sources.cluster = mesh.map(|mesh| {
        let (cluster, counters) = (Arc::clone(&mesh.cluster), mesh.counters.clone());
        Box::new(move || mesh::counts(&cluster, &counters)) as _
    });
    Site {
        version: VERSION,
        tiers: sources.tiers.clone(),
        calls,
        metrics: Metrics::new(sources),
        ui: match config.telemetry.ui {
            config::Ui::Off => Ui::Off,
            config::Ui::Local => Ui::Local,
            config::Ui::On => Ui::On,
        },
        pprof: config.telemetry.pprof,
        builds,
        actions,
        peers: mesh.map(|mesh| mesh::peers(&mesh.cluster)),
        health,
        components: Box::new(components(config, tiers, certificates)),
    }
}

/// Returns the function that reads the state of the tiers.
fn components(
    config: &Config,
    tiers: &Tiers,
    certificates: Certificates,
) -> impl Fn() -> Components + Send + Sync + use<> {
    let local = tiers.local.clone();
    let dir = config.local_cache.dir.display().to_string();
    let (breaker, waiting) = (tiers.breaker.clone(), tiers.waiting.clone());
    let target = config.backing_cache.target.as_ref();
    let target = target.map(ToString::to_string).unwrap_or_default();
    let pending_limit = config.backing_cache.journal_max.bytes();
    let limits = limits(&config.limits);
    move || Components {
        local: local.as_ref().map(|local| {
            let report = local.report();
            let usage = report.usage;
            Local {
                dir: dir.clone(),
                used: usage.used,
                limit: usage.limit,
                files: usage.files,
                free_on_disk: usage.free_on_disk,
                scanning: usage.scanning,
                evicted: report.evicted_blobs + report.evicted_results,
                evicted_bytes: report.evicted_bytes,
                leases_broken: report.leases_broken,
                eviction_age_seconds: report.eviction_age.map(|age| age.as_secs_f64()),
            }
        }),
        backing: breaker.as_ref().map(|breaker| Backing {
            target: target.clone(),
            breaker: Cow::Borrowed(match *breaker.borrow() {
                BreakerState::Closed => "closed",
                BreakerState::Open => "open",
                BreakerState::HalfOpen => "half_open",
            }),
            pending: waiting
                .as_ref()
                .map(|depth| tiers::pending(*depth.borrow())),
            pending_limit,
        }),
        limits,
        certificates: certificates().into_iter().map(certificate).collect(),
    }
}

fn certificate(found: Certificate) -> web::Certificate {
    web::Certificate {
        role: found.role.into(),
        file: found.file.display().to_string(),
        subject: found.subject,
        expiry: found.expiry,
    }
}

fn limits(limits: &config::Limits) -> Limits {
    Limits {
        memory: limits.memory.bytes(),
        max_connections: u64::from(limits.max_connections),
        max_batch_bytes: limits.max_batch_bytes.bytes(),
        max_blob_size: limits.max_blob_size.bytes(),
    }
}
