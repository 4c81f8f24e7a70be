//! The records of builds, if there is a page to show them.

use std::{path::Path, sync::Arc};

use gorego_config::{Config, LoadedConfig, Origin, Ui};
use gorego_storage::Peek;
use gorego_telemetry::builds::{
    Builds, BuildsOptions, BuildsWorker, Evictions, MissedLookups, Misses, RecordedActions,
    Redaction, remove_history,
};

use crate::tiers::Tiers;

const REDACT: &str = "telemetry.redact";

/// Returns the redaction of secrets. The error names the place of an invalid pattern.
pub(crate) fn redaction(loaded: &LoadedConfig) -> Result<Redaction, String> {
    Redaction::new(&loaded.config.telemetry.redact).map_err(|why| {
        let origin = loaded.origin(REDACT).unwrap_or(&Origin::Default);
        format!("{origin}: {REDACT}: {why}")
    })
}

/// Records the builds of the clients of `tiers`, if the page is served. A result of an action that is executed here is
/// recorded like one that its client stores.
pub(crate) fn record(
    config: &Config,
    redaction: Redaction,
    is_served: bool,
    tiers: &mut Tiers,
) -> Option<(Builds, BuildsWorker)> {
    let telemetry = &config.telemetry;
    let history_max = telemetry.history_max.bytes();
    let dir = tiers.local.as_ref().map(|_| config.local_cache.dir.clone());
    let is_kept = telemetry.ui != Ui::Off && history_max > 0;
    if let Some(dir) = dir.as_ref().filter(|_| !is_kept) {
        forget(dir);
    }
    if !is_served || telemetry.ui == Ui::Off {
        return None;
    }
    let evictions = Arc::<Evictions>::default();
    if let Some(local) = &tiers.local {
        local.observe_evictions(Arc::clone(&evictions) as _);
    }
    let local = tiers.local.clone().map(|local| local as Arc<dyn Peek>);
    let remote = tiers.remote.clone().map(|remote| remote as Arc<dyn Peek>);
    let (builds, worker) = Builds::new(BuildsOptions {
        dir: dir.filter(|_| is_kept),
        history_max,
        redaction,
        stores: local.into_iter().chain(remote).collect(),
        is_local_only: tiers.local.is_some() && config.backing_cache.target.is_some(),
        evictions,
    });
    let actions = Arc::clone(&tiers.stores.actions);
    tiers.stores.actions = Arc::new(RecordedActions::new(actions, builds.clone()));
    if let Some(executor) = &mut tiers.executor {
        let results = Arc::clone(&executor.worker.results);
        executor.worker.results = Arc::new(RecordedActions::new(results, builds.clone()));
        let misses = Arc::new(Misses::new(builds.clone()));
        let lookups = Arc::clone(&executor.lookups);
        executor.lookups = Arc::new(MissedLookups::new(lookups, Arc::clone(&misses)));
        executor.misses = Some(misses);
    }
    Some((builds, worker))
}

/// Removes the builds that earlier runs saved in the data directory.
fn forget(dir: &Path) {
    match remove_history(dir) {
        Ok(0) => {}
        Ok(_) => tracing::info!(
            "removed the builds of earlier runs in {}: telemetry.ui is off, or telemetry.history_max is 0",
            dir.display()
        ),
        Err(why) => tracing::warn!(
            "failed to remove the builds of earlier runs in {}: {why}",
            dir.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use gorego_config::{Places, Sources};

    use super::*;

    #[test]
    fn an_invalid_pattern_of_secrets_is_refused_with_its_place() {
        let sources = Sources {
            file: None,
            env: vec![("GOREGO_TELEMETRY_REDACT".to_owned(), "(token".into())],
            set: Vec::new(),
            places: Places::new("/".into(), None, None, false),
        };
        let refused = redaction(&Config::load(&sources).unwrap()).unwrap_err();
        let place = "GOREGO_TELEMETRY_REDACT: telemetry.redact: \"(token\": unclosed group";
        assert!(refused.contains(place), "{refused}");
    }
}
