//! The settings of persistent workers.

use std::time::Duration;

use gorego_config::Config;
use gorego_execution::PersistentOptions;

use super::concurrency;

/// The longest time without processor use before a new worker's first answer.
const SILENCE: Duration = Duration::from_secs(10);

/// Returns the settings of persistent workers; `None` if there are none.
pub(super) fn persistent(config: &Config) -> Option<PersistentOptions> {
    let workers = &config.execution.persistent_workers;
    workers.enabled.then(|| PersistentOptions {
        max: match workers.max {
            0 => concurrency(config),
            given => given,
        },
        idle_timeout: workers.idle_timeout,
        max_uses: workers.max_uses,
        silence: SILENCE,
    })
}

/// Returns the number of users that actions and persistent workers run as, if they have users of their own.
pub(crate) fn users(config: &Config) -> u32 {
    let workers = persistent(config).map_or(0, |workers| workers.max);
    concurrency(config).saturating_add(workers)
}
