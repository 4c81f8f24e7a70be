//! Limits of memory, processes and disk space, in control groups where the system allows them.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use futures::future::select;
use gorego_sandbox::{ControlGroups, Ended, Excess, Launch, Scratch, ScratchLimit};

use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    common::{Fixture, PATIENCE, Root},
    faults::{SERVE, Server},
    isolation::Action,
};

const MIB: u64 = 1 << 20;

/// The variable that switches control groups off, if it is set.
const NO_GROUPS: &str = "GOREGO_TEST_NO_CONTROL_GROUPS";

/// The variable with the memory of all commands together, in bytes.
const MEMORY: &str = "GOREGO_TEST_MEMORY";

/// Returns the memory of all commands together; `None` for no control groups.
pub(crate) fn memory() -> Option<u64> {
    if env::var_os(NO_GROUPS).is_some() {
        return None;
    }
    let given = env::var(MEMORY).ok();
    // Enough for all tests.
    Some(given.map_or(1 << 40, |bytes| bytes.parse().unwrap()))
}

/// A test that runs with little memory, in another process.
pub(crate) const WITH_LITTLE_MEMORY: &[Test] =
    &[("little_memory_is_shared", little_memory_is_shared)];

pub(crate) const TESTS: &[Test] = &[
    (
        "control_groups_share_the_memory_of_all_commands",
        control_groups_share_the_memory_of_all_commands,
    ),
    ("limited_memory_ends_a_command", |fixture| {
        let root = Root::new();
        assert_memory_is_limited(fixture, root.script(&hog(300 * MIB)));
    }),
    (
        "limited_scratch_ends_a_command_that_writes_a_file",
        a_file_that_is_too_large_ends_the_command,
    ),
    (
        "limited_scratch_ends_a_command_that_hides_a_file",
        a_deleted_file_that_is_too_large_ends_the_command,
    ),
    (
        "limits_hold_without_control_groups",
        limits_hold_without_control_groups,
    ),
    (
        "a_control_group_bounds_the_number_of_processes",
        a_control_group_bounds_the_number_of_processes,
    ),
    (
        "a_control_group_measures_the_memory_of_all_processes",
        a_control_group_measures_the_memory_of_all_processes,
    ),
    (
        "a_control_group_ends_with_its_command",
        a_control_group_ends_with_its_command,
    ),
    (
        "control_groups_of_a_dead_launcher_are_removed_by_the_next",
        control_groups_of_a_dead_launcher_are_removed_by_the_next,
    ),
];

pub(crate) const ISOLATED: &[Test] = &[
    (
        "limited_processes_are_those_of_the_user",
        limited_processes_are_those_of_the_user,
    ),
    ("limited_memory_ends_an_isolated_command", |fixture| {
        let action = Action::new();
        assert_memory_is_limited(fixture, action.script(&hog(300 * MIB)));
    }),
    (
        "limited_scratch_includes_closed_directories",
        limited_scratch_includes_closed_directories,
    ),
    (
        "limited_scratch_includes_deep_directories",
        limited_scratch_includes_deep_directories,
    ),
    (
        "a_control_group_holds_an_isolated_command",
        a_control_group_holds_an_isolated_command,
    ),
    (
        "a_control_group_that_is_used_again_measures_its_command_alone",
        a_control_group_that_is_used_again_measures_its_command_alone,
    ),
];

/// A script that holds this memory for ever, and another process beside it.
fn hog(bytes: u64) -> String {
    format!("(head -c {bytes} /dev/zero; exec sleep 1000) | tail")
}

fn has_groups(fixture: &Fixture) -> bool {
    matches!(fixture.launcher.control_groups(), ControlGroups::Version(_))
}

fn assert_memory_is_limited(fixture: &Fixture, mut launch: Launch) {
    launch.limits.memory = Some(64 * MIB);
    let excess = fixture.run(launch).unwrap().excess;
    let Some(Excess::Memory { used, limit }) = excess else {
        panic!("{excess:?}");
    };
    assert_eq!(limit, 64 * MIB);
    assert!(used > 60 * MIB, "{used}");
    // The kernel gives no more than the limit.
    assert!(used <= limit || !has_groups(fixture), "{used}");
}

/// Runs a script that may write 16 MiB.
fn run_with_scratch(fixture: &Fixture, script: &str) -> Ended {
    let root = Root::new();
    let mut launch = root.script(script);
    launch.scratch = Some(scratch(&root));
    fixture.run(launch).unwrap()
}

fn scratch(root: &Root) -> Scratch {
    Scratch {
        directory: File::open(root.path("")).unwrap().into(),
        limit: ScratchLimit {
            added: 16 * MIB,
            given: 0,
        },
    }
}

fn assert_too_large(ended: &Ended) {
    let Some(Excess::Scratch { used, limit }) = ended.excess else {
        panic!("{ended:?}");
    };
    assert_eq!(limit, 16 * MIB);
    // It may be measured while the command writes. A file that counts twice would exceed this.
    assert!((16 * MIB..21 * MIB).contains(&used), "{used}");
}

fn a_file_that_is_too_large_ends_the_command(fixture: &Fixture) {
    let script =
        "mkdir -p a/b; head -c 20971520 /dev/zero >a/b/file; ln a/b/file link; exec sleep 1000";
    assert_too_large(&run_with_scratch(fixture, script));
}

fn a_deleted_file_that_is_too_large_ends_the_command(fixture: &Fixture) {
    // Without groups, the first list of processes does not have the one that writes.
    let script =
        "sleep 0.5; (exec 3>file; rm file; head -c 20971520 /dev/zero >&3; exec sleep 1000); :";
    assert_too_large(&run_with_scratch(fixture, script));
}

fn limited_scratch_includes_closed_directories(fixture: &Fixture) {
    let action = Action::new();
    let script =
        "mkdir closed listed; for i in closed listed; do head -c 10485760 /dev/zero >$i/file; done
        chmod 0 closed; chmod 400 listed; exec sleep 1000";
    let mut launch = action.script(script);
    launch.scratch = Some(scratch(&action.root));
    assert_too_large(&fixture.run(launch).unwrap());
    for (name, mode) in [("closed", 0), ("listed", 0o400)] {
        let metadata = fs::metadata(action.root.path(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
}

fn limited_scratch_includes_deep_directories(fixture: &Fixture) {
    // More in a row or on a level than are open at once. Fewer than the descriptors that removing them takes.
    let script = "i=0; while [ $i -lt 400 ]; do mkdir d; cd d; i=$((i + 1)); done
        mkdir $(seq 300)
        while [ $i -lt 900 ]; do mkdir d; cd d; i=$((i + 1)); done
        head -c 20971520 /dev/zero >file; exec sleep 1000";
    let ended = run_with_scratch(fixture, script);
    let Some(Excess::Scratch { used, .. }) = ended.excess else {
        panic!("{ended:?}");
    };
    // A part of the file is enough, but the directories alone are not.
    assert!((16 * MIB..32 * MIB).contains(&used), "{used}");
}

fn limits_hold_without_control_groups(_: &Fixture) {
    let status = Command::new(env::current_exe().unwrap())
        .arg("limited_")
        .env(NO_GROUPS, "1")
        .status();
    assert!(status.unwrap().success());
}

fn limited_processes_are_those_of_the_user(fixture: &Fixture) {
    if has_groups(fixture) {
        // They limit the processes, and the test runs once more without them.
        return;
    }
    let action = Action::new();
    let mut launch = action.script("ulimit -u 2>/dev/null || ulimit -p");
    launch.limits.processes = Some(4321);
    fixture.run(launch).unwrap();
    assert_eq!(action.root.output(), "4321\n");
}

fn control_groups_share_the_memory_of_all_commands(fixture: &Fixture) {
    if !has_groups(fixture) {
        return;
    }
    let status = Command::new(env::current_exe().unwrap())
        .arg("little_memory_")
        .env(MEMORY, (96 * MIB).to_string())
        .status();
    assert!(status.unwrap().success());
}

/// Each of two commands would have enough memory, but not both.
fn little_memory_is_shared(fixture: &Fixture) {
    let stop = CancellationToken::new();
    let roots = [Root::new(), Root::new()];
    let [first, second] = roots.each_ref().map(|root| {
        let mut launch = root.script(&hog(64 * MIB));
        launch.limits.memory = Some(96 * MIB);
        Box::pin(fixture.launcher.run(launch, stop.clone()))
    });
    let (ended, other) = fixture.wait(select(first, second)).factor_first();
    let excess = ended.unwrap().excess;
    assert!(matches!(excess, Some(Excess::Memory { .. })), "{excess:?}");
    stop.cancel();
    let other = fixture.wait(other).unwrap();
    assert!(other.stopped && other.excess.is_none(), "{other:?}");
}

fn a_control_group_bounds_the_number_of_processes(fixture: &Fixture) {
    if !has_groups(fixture) {
        return;
    }
    let root = Root::new();
    let mut launch = root.script("bomb() { bomb | bomb & bomb; }; bomb");
    launch.limits.processes = Some(100);
    let ended = fixture.run(launch).unwrap();
    assert!(ended.refused_processes > 0, "{ended:?}");
    assert!(ended.leftovers.count <= 100, "{ended:?}");
    fixture.output_of("true");
}

fn a_control_group_measures_the_memory_of_all_processes(fixture: &Fixture) {
    if !has_groups(fixture) {
        return;
    }
    let root = Root::new();
    let script = "mkfifo full1 full2 full3 end1 end2 end3
        for i in 1 2 3; do
            (head -c 41943040 /dev/zero; echo >full$i; read line <end$i) | tail -c 41943040 >/dev/null &
        done
        for i in 1 2 3; do read line <full$i; done
        for i in 1 2 3; do echo >end$i; done
        wait";
    let ended = fixture.run(root.script(script));
    let peak = ended.unwrap().usage.peak_bytes;
    assert!((118 * MIB..200 * MIB).contains(&peak), "{peak}");
}

/// Returns the control group in which a command ran that printed `/proc/self/cgroup`, as a directory; `None` without
/// control groups.
fn group(output: &str) -> Option<PathBuf> {
    let line = output.lines().find(|line| line.contains("gorego-"))?;
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let below = path.split_once("/gorego-")?.1;
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let mounts = mounts.into_iter().map(|mount| mount.join(controllers));
    let mut dirs = mounts.map(|mount| mount.join(path.trim_start_matches('/')));
    assert!(below.contains('/'), "{path}");
    dirs.find(|dir| dir.parent().is_some_and(Path::exists))
}

fn wait_until_removed(group: &Path) {
    let start = Instant::now();
    while group.exists() {
        assert!(start.elapsed() < PATIENCE, "{} is left", group.display());
        thread::yield_now();
    }
}

fn a_control_group_ends_with_its_command(fixture: &Fixture) {
    let Some(group) = group(&fixture.output_of("cat /proc/self/cgroup")) else {
        assert!(!has_groups(fixture));
        return;
    };
    wait_until_removed(&group);
}

fn a_control_group_holds_an_isolated_command(fixture: &Fixture) {
    let output = Action::new().output_of(fixture, "cat /proc/self/cgroup");
    assert_eq!(output.contains("/gorego-"), has_groups(fixture), "{output}");
}

fn a_control_group_that_is_used_again_measures_its_command_alone(fixture: &Fixture) {
    if !has_groups(fixture) {
        return;
    }
    let run = |script| {
        let action = Action::new();
        let mut launch = action.script(script);
        launch.limits.processes = Some(4096);
        let ended = fixture.run(launch).unwrap();
        let dir = group(&action.root.output()).unwrap();
        (ended.usage.peak_bytes, dir)
    };
    let is_reusable = fixture.launcher.control_groups() == &ControlGroups::Version("v1".to_owned());
    let mut kept = 0;
    for _ in 0..4 {
        let large =
            "head -c 104857600 /dev/zero | tail -c 104857600 >/dev/null; cat /proc/self/cgroup";
        let (peak, _) = run(large);
        assert!(peak > 100 * MIB, "{peak}");
        let (peak, dir) = run("cat /proc/self/cgroup");
        assert!(peak < 64 * MIB, "{peak}");
        if is_reusable {
            kept += u32::from(dir.exists());
        } else {
            wait_until_removed(&dir);
        }
    }
    // One is not kept if the command had to read its files from the disk, and so left them cached.
    assert_eq!(kept > 0, is_reusable);
}

fn control_groups_of_a_dead_launcher_are_removed_by_the_next(fixture: &Fixture) {
    if !has_groups(fixture) {
        return;
    }
    let server = Server::start(SERVE, "sleep 1000");
    let processes = format!("/proc/{}/cgroup", server.command().as_raw_pid());
    let group = group(&fs::read_to_string(processes).unwrap()).unwrap();
    assert!(group.exists());
    let server = server.abandon_processes();
    let next = Server::start(SERVE, "sleep 1000");
    assert_eq!(server.gone(), "");
    wait_until_removed(group.parent().unwrap());
    assert_eq!(next.killed(), "");
}
