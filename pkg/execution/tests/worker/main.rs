//! Tests of the worker with real processes. Their launcher has to start before the process has threads.
#![cfg(test)]

mod action;
mod common;
mod directories;
mod fake;
mod logs;
mod outputs;
mod poison;
mod responses;
mod staging;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::Mutex,
    thread,
};

use gorego_sandbox::Launcher;
use rustix::{fs::Mode, process::umask};

use crate::common::Fixture;

/// A test and its name.
type Test = (&'static str, fn(&Fixture));

/// The number of tests that run at once. Most of them wait.
const PARALLEL: usize = 4;

/// Runs the tests whose names contain the first argument.
fn main() -> ExitCode {
    // That of a careful operator, which must not reach the action.
    umask(Mode::RWXG | Mode::RWXO);
    let fixture = Fixture::new(Launcher::start().unwrap());
    let arguments: Vec<_> = env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let selected = |(name, _): &&Test| filter.is_none_or(|filter| name.contains(filter.as_str()));
    let tests = [
        directories::TESTS,
        fake::TESTS,
        logs::TESTS,
        outputs::TESTS,
        poison::TESTS,
        responses::TESTS,
        staging::TESTS,
    ];
    let queue = Mutex::new(tests.into_iter().flatten().filter(selected));
    let failures = Mutex::new(0);
    let work = || {
        while let Some((name, test)) = { queue.lock().unwrap().next() } {
            let passed = panic::catch_unwind(AssertUnwindSafe(|| test(&fixture))).is_ok();
            println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
            *failures.lock().unwrap() += u32::from(!passed);
        }
    };
    thread::scope(|scope| (0..PARALLEL).for_each(|_| _ = scope.spawn(work)));
    ExitCode::from(u8::from(*failures.lock().unwrap() > 0))
}
