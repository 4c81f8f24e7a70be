//! Tests of actions' processes on a real launcher, which has to start before the process has threads.
#![cfg(test)]

mod command;
mod common;
mod confined;
mod external;
mod faults;
mod isolation;
mod limits;
mod load;
mod measuring;
mod namespaces;
mod poison;
mod processes;
mod reach;
mod refusals;

use std::{
    env,
    fs::File,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::Mutex,
    thread,
};

use gorego_sandbox::{Launcher, Level};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::common::Fixture;

/// The allocator of the server, which has a thread before `main`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A test and its name.
type Test = (&'static str, fn(&Fixture));

/// The number of tests that run at once. Most of them wait.
const PARALLEL: usize = 4;

/// Runs the tests whose names contain the first argument; or acts as a server for a test.
fn main() -> ExitCode {
    // A file that another program would inherit.
    let inherited = File::open("/dev/null").unwrap();
    fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
    let launcher = Launcher::start(limits::memory()).unwrap();
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [mode, script] = arguments.as_slice()
        && [faults::SERVE, faults::SERVE_ISOLATED].contains(&mode.as_str())
    {
        faults::serve(launcher, mode == faults::SERVE_ISOLATED, script);
        return ExitCode::SUCCESS;
    }
    let fixture = Fixture::new(launcher);
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    // These tests run only if they are asked for.
    let with_little_memory = match filter {
        Some(filter) if filter.starts_with("little_memory_") => limits::WITH_LITTLE_MEMORY,
        _ => &[],
    };
    let selected = |(name, _): &&Test| filter.is_none_or(|filter| name.contains(filter.as_str()));
    let isolated: &[_] = match isolation::level(&fixture) {
        Level::Full => &[
            command::ISOLATED,
            isolation::TESTS,
            namespaces::TESTS,
            namespaces::ANEW,
            limits::ISOLATED,
            poison::TESTS,
            reach::TESTS,
        ],
        Level::Processes(_) => &[namespaces::TESTS],
        Level::External(_) | Level::Plain(_) => &[isolation::FORBIDDEN],
    };
    let on_host = [
        command::TESTS,
        confined::TESTS,
        external::TESTS,
        faults::TESTS,
        limits::TESTS,
        load::TESTS,
        measuring::TESTS,
        processes::TESTS,
        refusals::TESTS,
        with_little_memory,
    ];
    let tests = on_host.iter().chain(isolated).copied();
    let queue = Mutex::new(tests.flatten().filter(selected));
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
