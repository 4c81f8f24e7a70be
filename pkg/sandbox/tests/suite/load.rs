//! Many launches at once.

use std::{
    fs::{self, File},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use futures::future::join_all;
use gorego_sandbox::Exit;
use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    common::{Fixture, Root},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_hundred_commands_run_at_once",
        a_hundred_commands_run_at_once,
    ),
    (
        "a_file_just_written_is_executed",
        a_file_just_written_is_executed,
    ),
];

/// Each command waits for all others.
fn a_hundred_commands_run_at_once(fixture: &Fixture) {
    let root = Root::new();
    let runs = (0..100).map(|number| {
        let script =
            format!("echo > {number}; until [ -e end ]; do sleep 0.2; done; exit {number}");
        let launch = root.script(&script);
        fixture.launcher.run(launch, CancellationToken::new())
    });
    let watch = async {
        while (0..100).any(|number| !root.path(&number.to_string()).exists()) {
            tokio::task::yield_now().await;
        }
        File::create(root.path("end")).unwrap();
    };
    let (ended, ()) = fixture.wait(async { tokio::join!(join_all(runs), watch) });
    for (number, ended) in (0..).zip(ended) {
        assert_eq!(ended.unwrap().exit, Exit::Code(number));
    }
}

/// A launch while a file is open for writing must not pass its descriptor to a process, as the file could not be
/// executed then.
fn a_file_just_written_is_executed(fixture: &Fixture) {
    let root = Root::new();
    let program = fs::read("/bin/true").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fixture.run(root.launch(&["true"])).unwrap();
            }
        });
        let result = (0..200).try_for_each(|number| {
            let name = format!("./{number}");
            root.executable(&name, &program);
            fixture.run(root.launch(&[&name])).map(|_| ())
        });
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}
