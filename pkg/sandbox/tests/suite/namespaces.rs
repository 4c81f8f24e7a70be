//! Commands whose processes and network are isolated, but not their files.

use std::{env, os::unix::process::CommandExt as _, process::Command, time::Duration};

use gorego_sandbox::{Exit, Launch, LaunchError, Leftovers, Level, Means};
use rustix::process::getuid;

use crate::{
    Test,
    common::{Fixture, LEAVE_PROCESSES, Watch},
    isolation::{Action, level, user},
};

/// The tests of a system that allows such namespaces.
pub(crate) const TESTS: &[Test] = &[
    (
        "namespaces_hide_other_processes_and_the_network",
        namespaces_hide_other_processes_and_the_network,
    ),
    (
        "namespaces_leave_the_files_of_the_host",
        namespaces_leave_the_files_of_the_host,
    ),
    (
        "namespaces_end_with_their_command",
        namespaces_end_with_their_command,
    ),
    (
        "namespaces_end_with_the_timeout",
        namespaces_end_with_the_timeout,
    ),
    (
        "namespaces_count_attempts_to_leave_the_network",
        namespaces_count_attempts_to_leave_the_network,
    ),
    (
        "namespaces_that_are_stopped_end",
        namespaces_that_are_stopped_end,
    ),
    (
        "namespaces_refuse_what_cannot_be_executed",
        namespaces_refuse_what_cannot_be_executed,
    ),
    (
        "namespaces_without_mounts_are_explained",
        namespaces_without_mounts_are_explained,
    ),
];

/// The tests that run the others once more, where the system forbids mounts.
pub(crate) const ANEW: &[Test] = &[
    (
        "namespace_tests_pass_where_mount_namespaces_are_forbidden",
        namespace_tests_pass_where_mount_namespaces_are_forbidden,
    ),
    (
        "namespace_tests_pass_where_proc_is_masked",
        namespace_tests_pass_where_proc_is_masked,
    ),
];

/// Returns the launch of a script in namespaces, in the directory of `action`.
fn script(action: &Action, script: &str) -> Launch {
    let mut launch = action.script(script);
    launch
        .isolation
        .iter_mut()
        .for_each(|it| it.by = Means::Processes);
    launch
}

/// Runs a script that has to succeed and leave no process, and returns its output.
fn output_of(fixture: &Fixture, text: &str) -> String {
    let action = Action::new();
    let ended = fixture.run(script(&action, text)).unwrap();
    let said = action.root.output() + &action.root.errors();
    assert_eq!(ended.exit, Exit::Code(0), "{said}");
    assert_eq!(ended.leftovers, Leftovers::default(), "{said}");
    action.root.output()
}

fn namespaces_hide_other_processes_and_the_network(fixture: &Fixture) {
    // An equal process on the host, of the same user as far as the test can have one.
    let mut neighbour = Command::new("sleep");
    if let Some(user) = user() {
        neighbour.uid(user).gid(user);
    }
    let mut neighbour = neighbour.arg("1000").spawn().unwrap();
    let pid = neighbour.id();
    let text = format!(
        "echo $$; kill -0 {pid} 2>/dev/null && echo signalled
         cat /proc/{pid}/environ /proc/{pid}/maps 2>/dev/null && echo read
         tail -n +3 /proc/net/dev | tr -d ' ' | cut -d: -f1 | sort
         ipcmk -Q >/dev/null; tail -n +2 /proc/sysvipc/msg | wc -l; hostname; id -u"
    );
    let output = output_of(fixture, &text);
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
    let user = user().unwrap_or_else(|| getuid().as_raw());
    assert_eq!(output, format!("2\nlo\n1\nlocalhost\n{user}\n"));
}

fn namespaces_leave_the_files_of_the_host(fixture: &Fixture) {
    let action = Action::new();
    let path = action.root.path("");
    let ended = fixture.run(script(&action, "pwd; touch in_the_root; setsid true"));
    assert_eq!(
        ended.unwrap().exit,
        Exit::Code(0),
        "{}",
        action.root.errors()
    );
    assert_eq!(
        action.root.output().trim_end(),
        path.to_str().unwrap().trim_end_matches('/')
    );
    assert!(action.root.path("in_the_root").exists());
}

fn namespaces_end_with_their_command(fixture: &Fixture) {
    let (watch, writer) = Watch::new();
    let action = Action::new();
    let mut launch = script(&action, &format!("{LEAVE_PROCESSES} exit 3"));
    launch.stdout = writer;
    let ended = fixture.run(launch).unwrap();
    watch.gone();
    assert_eq!(ended.exit, Exit::Code(3));
    let Leftovers { count, names } = &ended.leftovers;
    assert!((4..=7).contains(count), "{:?}", ended.leftovers);
    assert!(names.iter().any(|name| name == "sh"), "{names:?}");
}

fn namespaces_end_with_the_timeout(fixture: &Fixture) {
    let action = Action::new();
    let run = |text, kill_delay| {
        let (watch, writer) = Watch::new();
        let mut launch = script(&action, text);
        launch.stderr = writer;
        launch.timeout = Duration::from_secs(5);
        launch.kill_delay = kill_delay;
        let ended = fixture.run(launch).unwrap();
        watch.gone();
        assert!(ended.timed_out && !ended.stopped);
        ended.exit
    };
    let clean = "trap 'echo cleaned; exit 7' TERM; while :; do sleep 0.01; done";
    assert_eq!(run(clean, Duration::from_mins(10)), Exit::Code(7));
    assert_eq!(action.root.output(), "cleaned\n");
    let stubborn = "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.01; done";
    assert_eq!(run(stubborn, Duration::from_millis(1)), Exit::Signal(9));
}

fn namespaces_count_attempts_to_leave_the_network(fixture: &Fixture) {
    let dial = "for kind in tcp udp; do bash -c \"exec 3<>/dev/$kind/192.0.2.1/53\"; done";
    let cases = [
        (dial, "exit 1", 2),
        (dial, "exit 0", 0),
        ("true", "exit 1", 0),
    ];
    for (first, last, expected) in cases {
        for means in [Means::Root, Means::Processes] {
            let action = Action::new();
            let mut launch = script(&action, &format!("{first}; {last}"));
            launch
                .isolation
                .iter_mut()
                .for_each(|it| it.by.clone_from(&means));
            match fixture.run(launch) {
                Ok(ended) => assert_eq!(ended.attempts.unroutable, expected, "{first}; {last}"),
                Err(LaunchError::Isolation(_)) if means == Means::Root => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn namespaces_that_are_stopped_end(fixture: &Fixture) {
    let (mut watch, writer) = Watch::new();
    let action = Action::new();
    let mut launch = script(&action, &format!("{LEAVE_PROCESSES} sleep 1000"));
    launch.stdout = writer;
    let stop = tokio_util::sync::CancellationToken::new();
    let run = fixture.launcher.run(launch, stop.clone());
    let ended = fixture.wait(async {
        let ready = tokio::task::spawn_blocking(move || {
            watch.ready();
            watch
        });
        let stopped = async {
            let watch = ready.await.unwrap();
            stop.cancel();
            watch
        };
        let (ended, watch) = tokio::join!(run, stopped);
        tokio::task::spawn_blocking(|| watch.gone()).await.unwrap();
        ended
    });
    assert!(ended.unwrap().stopped);
}

fn namespaces_refuse_what_cannot_be_executed(fixture: &Fixture) {
    let action = Action::new();
    let mut launch = script(&action, "");
    launch.argv = vec!["/nothing/tool".to_owned()];
    let refused = fixture.run(launch);
    assert!(
        matches!(refused, Err(LaunchError::NotExecutable { .. })),
        "{refused:?}"
    );
    let mut launch = script(&action, "true");
    launch.user = Some(0);
    let refused = fixture.run(launch);
    let is_refused = matches!(refused, Err(LaunchError::Isolation(_)));
    assert!(user().is_none() || is_refused, "{refused:?}");
}

fn namespaces_without_mounts_are_explained(fixture: &Fixture) {
    let Level::Processes(why) = level(fixture) else {
        return;
    };
    let is_named = why.starts_with("no mount namespaces: ") || why.contains("failed: ");
    assert!(is_named, "{why}");
}

/// Runs these tests once more in a user namespace that `script` prepares.
fn run_anew(flags: &str, prepare: &str) {
    // An ordinary user, since the namespace has no other that root could run commands as.
    let text = format!(
        "{prepare} && exec unshare --user --map-user=1000 --map-group=1000 -- \"$0\" namespaces_"
    );
    let output = Command::new("unshare")
        .args([flags, "sh", "-c", &text])
        .arg(env::current_exe().unwrap())
        // Gives up other groups, which cannot be done inside.
        .uid(getuid().as_raw())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert_eq!(
        text.matches("... ok").count(),
        TESTS.len(),
        "{text}{errors}"
    );
}

fn namespace_tests_pass_where_mount_namespaces_are_forbidden(_: &Fixture) {
    // Of this namespace itself, which exists already.
    run_anew("-Ur", "echo 0 >/proc/sys/user/max_mnt_namespaces");
}

fn namespace_tests_pass_where_proc_is_masked(_: &Fixture) {
    // As container runtimes do. The kernel then refuses other mounts of it.
    run_anew("-Urm", "mount --bind /dev/null /proc/version");
}
