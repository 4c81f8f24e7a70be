//! The memory of a scheduler. A file of its own, since it measures with the allocator of the process.
#![cfg(test)]

use std::{sync::Arc, time::Duration};

use allocation_counter::measure;
use gorego_scheduler::{ActionKey, OperationId, Options, Request, Scheduler, Time};
use gorego_storage::{DigestFunction, InstanceName};

#[test]
fn a_queued_action_takes_at_most_a_kibibyte_besides_its_job() {
    const ACTIONS: u32 = 100_000;
    let mut scheduler: Scheduler<(), ()> = Scheduler::new(Options {
        queue_size: 100_000,
        abandon_after: Duration::from_mins(1),
        retain_completed: Duration::from_mins(10),
        max_completed: 1000,
        max_completed_bytes: 1000,
        max_retries: 2,
        max_losses: 5,
    });
    let platform: Arc<str> = "linux".into();
    let job = Arc::new(());
    let allocated = measure(|| {
        for action in 0..ACTIONS {
            let request = Request {
                key: Arc::new(ActionKey {
                    instance: InstanceName::default(),
                    action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
                }),
                do_not_cache: false,
                build: "b".repeat(36),
                priority: 0,
                platform: Arc::clone(&platform),
                memory: u64::from(action) << 16,
                target: "t".repeat(1000),
                mnemonic: "m".repeat(1000),
                job: Arc::clone(&job),
            };
            let id = OperationId(action.into());
            scheduler.submit(id, &request, Time::ZERO).unwrap();
            drop(scheduler.take_effects());
        }
    });
    let each = allocated.bytes_current / i64::from(ACTIONS);
    assert!((1..=1024).contains(&each), "{each} bytes");
}
