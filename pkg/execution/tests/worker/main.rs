//! Tests of the worker with real processes. Their launcher has to start before the process has threads.
#![cfg(test)]

mod action;
mod common;
mod directories;
mod fake;
mod logs;
mod outputs;
mod persistent;
mod poison;
mod responses;
mod staging;
mod trees;

use std::{
    env,
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    panic::{self, AssertUnwindSafe},
    process::{Command, ExitCode},
    sync::Mutex,
    thread,
};

use gorego_sandbox::Launcher;
use rustix::{
    fs::Mode,
    process::{geteuid, umask},
};

use crate::common::{Fixture, has_users};

/// A test and its name.
type Test = (&'static str, fn(&Fixture));

/// The number of tests that run at once. Most of them wait.
const PARALLEL: usize = 4;

/// The tests whose actions meet the test, or each other, in a folder of the host, or look at it.
const ON_HOST: [&str; 7] = [
    "a_blob_with_as_many_links_as_are_allowed_is_copied",
    "a_cancelled_action_ends_its_persistent_worker",
    "a_cancelled_action_is_stopped",
    "a_persistent_worker_with_protobuf_runs_several_actions",
    "an_archive_of_inputs_has_no_hard_links",
    "an_input_that_a_cancelled_action_altered_harms_nobody",
    "an_input_that_an_action_altered_before_another_read_it_is_right",
];

/// The names of tests whose actions have to own their inputs. As root, isolated actions do not.
const OF_OWNERS: [&str; 2] = ["a_hard_link_of_an_input", "a_user_of_the_action"];

/// A part of the names of tests whose actions try to alter inputs. They tolerate failure where the action does not own
/// its inputs.
const ATTACKS: &str = "harms_nobody";

/// The ordinary user that runs tests of owners once more.
const ORDINARY: u32 = 65534;

/// Runs the tests whose names contain the first argument, on the host and isolated. Also a tool of them.
fn main() -> ExitCode {
    if env::args().any(|argument| argument == "--persistent_worker") {
        persistent::serve();
        return ExitCode::SUCCESS;
    }
    // That of a careful operator, which must not reach the action.
    umask(Mode::RWXG | Mode::RWXO);
    let mut fixture = Fixture::new(Launcher::start(None).unwrap());
    let is_root = geteuid().is_root();
    let mut passed = run("test", &fixture, |_| true);
    if has_users() {
        fixture.set_user();
        passed &= run("as another user", &fixture, |name| {
            name.contains(ATTACKS) && !ON_HOST.contains(&name)
        });
    }
    match fixture.isolate() {
        Ok(()) => {
            passed &= run("isolated", &fixture, |name| {
                let is_owner = OF_OWNERS.iter().any(|owner| name.starts_with(owner));
                !(ON_HOST.contains(&name) || is_root && is_owner)
            });
            passed &= !is_root || run_as_ordinary_user();
        }
        Err(why) => println!("the system does not allow isolation: {why}"),
    }
    ExitCode::from(u8::from(!passed))
}

/// Runs the tests of inputs that are altered, as a user who owns them.
fn run_as_ordinary_user() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("worker");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    for path in [directory.path(), &home, &program] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    chown(&home, Some(ORDINARY), Some(ORDINARY)).unwrap();
    let status = Command::new(program)
        .arg(ATTACKS)
        .uid(ORDINARY)
        .gid(ORDINARY)
        .env("TMPDIR", &home)
        .current_dir(&home)
        .status();
    status.unwrap().success()
}

/// Runs the selected tests that suit the fixture, and returns whether all passed.
fn run(prefix: &str, fixture: &Fixture, suits: impl Fn(&str) -> bool + Sync) -> bool {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let suits = &suits;
    let selected = |(name, _): &&Test| {
        suits(name) && filter.is_none_or(|filter| name.contains(filter.as_str()))
    };
    let tests = [
        directories::TESTS,
        fake::TESTS,
        logs::TESTS,
        outputs::TESTS,
        persistent::TESTS,
        poison::TESTS,
        responses::TESTS,
        staging::TESTS,
        trees::TESTS,
    ];
    let queue = Mutex::new(tests.into_iter().flatten().filter(selected));
    let failures = Mutex::new(0);
    let work = || {
        while let Some((name, test)) = { queue.lock().unwrap().next() } {
            let passed = panic::catch_unwind(AssertUnwindSafe(|| test(fixture))).is_ok();
            println!(
                "{prefix} {name} ... {}",
                if passed { "ok" } else { "FAILED" }
            );
            *failures.lock().unwrap() += u32::from(!passed);
        }
    };
    thread::scope(|scope| (0..PARALLEL).for_each(|_| _ = scope.spawn(work)));
    *failures.lock().unwrap() == 0
}
