//! The resources of running commands.

use gorego_sandbox::{LiveCommand, LiveUsage};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    common::{Fixture, Root},
};

pub(crate) const TESTS: &[Test] = &[(
    "running_command_is_measured_with_its_children",
    running_command_is_measured_with_its_children,
)];

fn running_command_is_measured_with_its_children(fixture: &Fixture) {
    let root = Root::new();
    // Both processes use the processor until they are stopped.
    let launch = root.script("(while :; do :; done) & while :; do :; done");
    let commands = [LiveCommand::default(), launch.live.clone()];
    assert_eq!(LiveCommand::measure(&commands), [None, None]);
    let stop = CancellationToken::new();
    let measure = async {
        loop {
            if let [None, Some(usage)] = LiveCommand::measure(&commands)[..]
                && usage.processor > LiveUsage::default().processor
                && usage.resident_bytes > 0
            {
                break;
            }
            yield_now().await;
        }
        stop.cancel();
    };
    let run = fixture.launcher.run(launch, stop.clone());
    let (ended, ()) = fixture.wait(async { tokio::join!(run, measure) });
    assert!(ended.unwrap().stopped);
    assert_eq!(LiveCommand::measure(&commands), [None, None]);
}
