//! Processes that a command leaves behind, timeouts, and stops.

use std::{fs, time::Duration};

use gorego_sandbox::{Exit, Launch, has_users};
use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    common::{Fixture, LEAVE_PROCESSES, Root, Watch},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "leftovers_are_killed_and_counted",
        leftovers_are_killed_and_counted,
    ),
    (
        "command_without_leftovers_has_none",
        command_without_leftovers_has_none,
    ),
    ("fork_bomb_is_killed", fork_bomb_is_killed),
    ("deep_tree_is_killed", deep_tree_is_killed),
    (
        "timeout_lets_a_command_clean_up",
        timeout_lets_a_command_clean_up,
    ),
    (
        "timeout_kills_what_ignores_sigterm",
        timeout_kills_what_ignores_sigterm,
    ),
    (
        "signals_do_not_delay_the_timeout",
        signals_do_not_delay_the_timeout,
    ),
    (
        "user_of_an_action_gains_no_privileges",
        user_of_an_action_gains_no_privileges,
    ),
    ("stop_kills_every_process", stop_kills_every_process),
    ("early_stop_is_reported", early_stop_is_reported),
    (
        "dropped_run_kills_every_process",
        dropped_run_kills_every_process,
    ),
];

/// Returns a launch of a script whose output tells whether one of its processes is left.
fn watched(script: &str) -> (Watch, Launch) {
    let (watch, writer) = Watch::new();
    let mut launch = Root::new().script(script);
    launch.stdout = writer;
    (watch, launch)
}

fn leftovers_are_killed_and_counted(fixture: &Fixture) {
    let (watch, launch) = watched(&format!("{LEAVE_PROCESSES} exit 3"));
    let ended = fixture.run(launch).unwrap();
    watch.gone();
    assert_eq!(ended.exit, Exit::Code(3));
    assert!(!ended.timed_out && !ended.stopped);
    assert!(ended.leftovers.count >= 4, "{:?}", ended.leftovers);
    assert!(ended.leftovers.names.len() <= 8);
    let known = |name: &String| ["sleep", "sh", "setsid", "nohup"].contains(&name.as_str());
    assert!(
        ended.leftovers.names.iter().all(known),
        "{:?}",
        ended.leftovers
    );
}

fn command_without_leftovers_has_none(fixture: &Fixture) {
    assert_eq!(
        fixture.output_of("sleep 0 & sleep 0 | cat; wait; echo end"),
        "end\n"
    );
}

/// The command ends while its descendants still fork, 255 in all.
fn fork_bomb_is_killed(fixture: &Fixture) {
    let bomb = "f() { [ $1 -eq 0 ] || { f $(($1 - 1)) & f $(($1 - 1)) & }; sleep 1000; }";
    let (watch, launch) = watched(&format!("{bomb}; f 6 & f 6 & sleep 0.05; exit 0"));
    let ended = fixture.run(launch).unwrap();
    watch.gone();
    assert_eq!(ended.exit, Exit::Code(0));
    assert!(ended.leftovers.count > 0);
}

fn deep_tree_is_killed(fixture: &Fixture) {
    let root = Root::new();
    root.executable(
        "deep",
        "#!/bin/sh\n[ $1 -eq 0 ] && { sleep 1000 & echo > bottom; wait; }; ./deep $(($1 - 1)); exit",
    );
    let (watch, writer) = Watch::new();
    let mut launch = root.script("./deep 50 & until [ -e bottom ]; do sleep 0.01; done");
    launch.stdout = writer;
    let ended = fixture.run(launch).unwrap();
    watch.gone();
    assert_eq!(ended.leftovers.count, 52);
}

fn timeout_lets_a_command_clean_up(fixture: &Fixture) {
    let root = Root::new();
    let mut launch = root.script(
        "trap 'wait; echo cleaned; exit 7' TERM
         sh -c 'trap \"echo child; exit\" TERM; while :; do sleep 0.01; done' &
         echo begun
         while :; do sleep 0.01; done",
    );
    launch.timeout = Duration::from_secs(5);
    let ended = fixture.run(launch).unwrap();
    assert!(ended.timed_out && !ended.stopped);
    assert_eq!(ended.exit, Exit::Code(7));
    assert_eq!(root.output(), "begun\nchild\ncleaned\n");
}

fn timeout_kills_what_ignores_sigterm(fixture: &Fixture) {
    let (mut watch, mut launch) =
        watched(&format!("{LEAVE_PROCESSES} while :; do sleep 1000; done"));
    launch.timeout = Duration::from_secs(5);
    launch.kill_delay = Duration::from_millis(1);
    let ended = fixture.run(launch).unwrap();
    watch.ready();
    watch.gone();
    assert!(ended.timed_out && !ended.stopped);
    assert_eq!(ended.exit, Exit::Signal(9));
    assert_eq!(ended.leftovers.count, 0);
}

fn stop_kills_every_process(fixture: &Fixture) {
    let (mut watch, launch) = watched(&format!("{LEAVE_PROCESSES} sleep 1000"));
    let stop = CancellationToken::new();
    let run = fixture.launcher.run(launch, stop.clone());
    let (ended, ()) = fixture.wait(async {
        let ready = tokio::task::spawn_blocking(move || {
            watch.ready();
            stop.cancel();
            watch
        });
        let ended = run.await.unwrap();
        ready.await.unwrap().gone();
        (ended, ())
    });
    assert!(ended.stopped && !ended.timed_out);
    assert_eq!(ended.exit, Exit::Signal(9));
    assert_eq!(ended.leftovers.count, 0);
}

fn early_stop_is_reported(fixture: &Fixture) {
    let stop = CancellationToken::new();
    stop.cancel();
    let root = Root::new();
    let ended = fixture
        .wait(fixture.launcher.run(root.script("sleep 1000"), stop))
        .unwrap();
    assert!(ended.stopped);
    assert_eq!(ended.exit, Exit::Signal(9));
    assert!(fs::exists(root.path("")).unwrap());
}

fn dropped_run_kills_every_process(fixture: &Fixture) {
    let (mut watch, launch) = watched(&format!("{LEAVE_PROCESSES} sleep 1000"));
    let watch = fixture.wait(async {
        let ready = tokio::task::spawn_blocking(move || {
            watch.ready();
            watch
        });
        tokio::select! {
            ended = fixture.launcher.run(launch, CancellationToken::new()) => panic!("{ended:?}"),
            watch = ready => watch.unwrap(),
        }
    });
    watch.gone();
}

fn signals_do_not_delay_the_timeout(fixture: &Fixture) {
    let flood = "while :; do kill -CONT $PPID; done";
    let mut launch = Root::new().script(&format!("({flood}) & ({flood}) & {flood}"));
    launch.timeout = Duration::from_millis(100);
    launch.kill_delay = Duration::ZERO;
    assert!(fixture.run(launch).unwrap().timed_out);
}

/// Needs root of a system with other users.
fn user_of_an_action_gains_no_privileges(fixture: &Fixture) {
    if !has_users(&(61_184..61_185)) {
        return;
    }
    let root = Root::new();
    let mut launch = root.script("id -u; grep NoNewPrivs /proc/self/status");
    launch.user = Some(61_184);
    let ended = fixture.run(launch).unwrap();
    assert_eq!(ended.exit, Exit::Code(0), "{}", root.errors());
    assert_eq!(root.output(), "61184\nNoNewPrivs:\t1\n");
}
