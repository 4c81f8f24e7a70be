//! Many launches at once.

use std::{
    fs::{self, File},
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use futures::future::join_all;
use gorego_sandbox::Exit;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    common::{Fixture, Root, Watch},
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

/// Each command waits for a line of a pipe, which is written when all of them run.
fn a_hundred_commands_run_at_once(fixture: &Fixture) {
    let root = Root::new();
    mknodat(CWD, root.path("gate"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let gate = File::options()
        .read(true)
        .write(true)
        .open(root.path("gate"));
    let mut gate = gate.unwrap();
    let (mut watch, writer) = Watch::new();
    let runs = (0..100).map(|number| {
        let mut launch = root.script(&format!("echo ready; read line < gate; exit {number}"));
        launch.stdout = writer.try_clone().unwrap();
        fixture.launcher.run(launch, CancellationToken::new())
    });
    let ended = fixture.wait(async {
        let open = tokio::task::spawn_blocking(move || {
            (0..100).for_each(|_| _ = watch.ready());
            gate.write_all(&[b'\n'; 100]).unwrap();
            gate
        });
        let ended = join_all(runs).await;
        open.await.unwrap();
        ended
    });
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
