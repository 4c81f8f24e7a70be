//! The records of builds, if there is a page to show them.

use std::sync::Arc;

use gorego_config::{Config, Ui};
use gorego_storage::Peek;
use gorego_telemetry::builds::{
    Builds, BuildsOptions, BuildsWorker, Evictions, RecordedActions, Redaction,
};

use crate::tiers::Tiers;

/// Records the builds of the clients of `tiers`, if the page is served.
pub(crate) fn record(
    config: &Config,
    redaction: Redaction,
    is_served: bool,
    tiers: &mut Tiers,
) -> Option<(Builds, BuildsWorker)> {
    let telemetry = &config.telemetry;
    if !is_served || telemetry.ui == Ui::Off {
        return None;
    }
    let evictions = Arc::<Evictions>::default();
    if let Some(local) = &tiers.local {
        local.observe_evictions(Arc::clone(&evictions) as _);
    }
    let local = tiers.local.clone().map(|local| local as Arc<dyn Peek>);
    let remote = tiers.remote.clone().map(|remote| remote as Arc<dyn Peek>);
    let dir = tiers.local.as_ref().map(|_| config.local_cache.dir.clone());
    let (builds, worker) = Builds::new(BuildsOptions {
        dir,
        history_max: telemetry.history_max.bytes(),
        redaction,
        stores: local.into_iter().chain(remote).collect(),
        is_local_only: tiers.local.is_some() && config.backing_cache.target.is_some(),
        evictions,
    });
    let actions = Arc::clone(&tiers.stores.actions);
    tiers.stores.actions = Arc::new(RecordedActions::new(actions, builds.clone()));
    Some((builds, worker))
}
