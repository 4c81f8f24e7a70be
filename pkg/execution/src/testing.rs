//! Values for tests.

use std::{collections::BTreeMap, time::Duration};

use crate::Options;

/// Options that accept what tests need.
pub(crate) fn options() -> Options {
    Options {
        first_user: None,
        isolation: None,
        confined_to: None,
        keeps_failed: false,
        node: "node".to_owned(),
        build_root: "/nonexistent".into(),
        concurrency: 1,
        memory: 1 << 30,
        max_processes: 4096,
        max_scratch_bytes: 1 << 30,
        min_free: 0,
        default_timeout: Duration::from_mins(30),
        max_timeout: Duration::from_hours(2),
        kill_delay: Duration::from_secs(5),
        peer_platforms: None,
        max_input_bytes: 1 << 30,
        max_output_bytes: None,
        max_inline_bytes: 4 << 20,
        max_log_bytes: 64 << 20,
        lease: Duration::from_hours(1),
        environment: BTreeMap::new(),
        platform: BTreeMap::new(),
        ignore_unknown_platform: false,
        persistent: None,
        scheduler: gorego_scheduler::Options {
            queue_size: 100,
            abandon_after: Duration::from_mins(1),
            retain_completed: Duration::from_mins(10),
            max_completed: 100,
            max_completed_bytes: 1 << 20,
            max_retries: 2,
            max_losses: 2,
        },
    }
}
