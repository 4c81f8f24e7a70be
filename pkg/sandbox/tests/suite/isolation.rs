//! Isolated commands: what they see, and what they cannot reach.

use std::{
    env,
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use gorego_sandbox::{Ended, Exit, Isolation, Launch, LaunchError, Leftovers, Level, Means};
use rustix::process::getuid;
use tempfile::TempDir;

use crate::{
    Test,
    common::{Fixture, LEAVE_PROCESSES, Root, Watch},
    faults::{
        isolated_processes_outlive_no_server, isolated_processes_outlive_no_stopped_supervisor,
        isolated_processes_outlive_no_supervisor,
    },
};

/// The tests of a system that allows isolation.
pub(crate) const TESTS: &[Test] = &[
    ("isolated_host_is_read_only", isolated_host_is_read_only),
    (
        "isolated_hidden_paths_are_empty",
        isolated_hidden_paths_are_empty,
    ),
    (
        "isolated_writable_path_reaches_the_host",
        isolated_writable_path_reaches_the_host,
    ),
    (
        "isolated_temporary_files_are_gone_afterwards",
        isolated_temporary_files_are_gone_afterwards,
    ),
    (
        "isolated_leftovers_are_killed_and_counted",
        isolated_leftovers_are_killed_and_counted,
    ),
    (
        "isolated_timeout_lets_a_command_clean_up",
        isolated_timeout_lets_a_command_clean_up,
    ),
    (
        "isolated_refusals_are_those_of_any_command",
        isolated_refusals_are_those_of_any_command,
    ),
    (
        "isolated_resource_use_is_reported",
        isolated_resource_use_is_reported,
    ),
    (
        "isolated_processes_outlive_no_server",
        isolated_processes_outlive_no_server,
    ),
    (
        "isolated_processes_outlive_no_supervisor",
        isolated_processes_outlive_no_supervisor,
    ),
    (
        "isolated_processes_outlive_no_stopped_supervisor",
        isolated_processes_outlive_no_stopped_supervisor,
    ),
    (
        "isolated_network_is_as_new_for_each_command",
        isolated_network_is_as_new_for_each_command,
    ),
    (
        "isolated_tests_pass_as_an_ordinary_user",
        isolated_tests_pass_as_an_ordinary_user,
    ),
    (
        "isolation_that_is_forbidden_is_explained",
        isolation_that_is_forbidden_is_explained,
    ),
];

/// The tests of a system that forbids it.
pub(crate) const FORBIDDEN: &[Test] = &[(
    "isolation_forbidden_here_is_explained",
    isolation_forbidden_here_is_explained,
)];

/// The user of commands, if the tests run as root.
pub(crate) const USER: u32 = 61184;
/// The ordinary user that the tests run as once more.
const ORDINARY: u32 = 65534;

/// The files of an isolated action.
pub(crate) struct Action {
    pub(crate) root: Root,
    tmp: TempDir,
    pub(crate) isolation: Isolation,
}

impl Action {
    pub(crate) fn new() -> Self {
        let (root, tmp) = (Root::new(), TempDir::new().unwrap());
        for path in [&root.path(""), tmp.path()] {
            // Fails where that user does not exist. Isolation fails there, too.
            let _ = chown(path, user(), user());
        }
        let isolation = Isolation {
            by: Means::Root,
            tmp: tmp.path().to_owned(),
            hide: ["/root", "/home", "/run", "/nothing"]
                .map(PathBuf::from)
                .into(),
            writable: Vec::new(),
            overlay: None,
            shm_bytes: 1 << 20,
            network: false,
        };
        Self {
            root,
            tmp,
            isolation,
        }
    }

    pub(crate) fn launch(&self, argv: &[&str]) -> Launch {
        let mut launch = self.root.launch(argv);
        launch.user = user();
        launch.isolation = Some(self.isolation.clone());
        launch
    }

    pub(crate) fn script(&self, script: &str) -> Launch {
        self.launch(&["sh", "-c", script])
    }

    /// Runs a script that has to succeed and leave no process, and returns its output.
    pub(crate) fn output_of(&self, fixture: &Fixture, script: &str) -> String {
        let ended = fixture.run(self.script(script)).unwrap();
        assert_eq!(
            ended.exit,
            Exit::Code(0),
            "{}{}",
            self.root.output(),
            self.root.errors()
        );
        assert_eq!(ended.leftovers, Leftovers::default());
        self.root.output()
    }
}

pub(crate) fn user() -> Option<u32> {
    getuid().is_root().then_some(USER)
}

/// Returns the level that the system allows.
pub(crate) fn level(fixture: &Fixture) -> Level {
    let action = Action::new();
    let root = action.root.launch(&[]).root;
    let probed = fixture
        .launcher
        .probe(root, user(), action.isolation.clone());
    fixture.wait(probed).unwrap()
}

fn isolated_host_is_read_only(fixture: &Fixture) {
    // A directory of the host that every user may write to.
    let host = TempDir::new_in(env::current_dir().unwrap()).unwrap();
    let open = host.path().join("open");
    fs::create_dir(&open).unwrap();
    for path in [host.path(), open.as_path()] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let (action, open) = (Action::new(), open.display().to_string());
    let script = format!(
        "for path in {open}/new /new /usr/new /etc/new /dev/new /gorego/new; do
             touch $path 2>&1 && echo $path was created
         done
         pwd; touch in_the_root"
    );
    let output = action.output_of(fixture, &script);
    let refused = output.matches("Read-only file system").count();
    assert!(refused == 6 || !is_visible(&open), "{output}");
    assert!(output.ends_with("/gorego/root\n"), "{output}");
    assert!(action.root.path("in_the_root").exists());
}

/// Returns whether an isolated command sees a path of the host: not below its own directories or hidden ones.
fn is_visible(path: &str) -> bool {
    !["/tmp/", "/root/", "/home/", "/run/"]
        .iter()
        .any(|hidden| path.starts_with(hidden))
}

fn isolated_hidden_paths_are_empty(fixture: &Fixture) {
    let secret = TempDir::new_in("/var/tmp").unwrap();
    let (folder, file) = (secret.path().join("folder"), secret.path().join("file"));
    let link = secret.path().join("link");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("key"), "secret").unwrap();
    fs::write(&file, "secret").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    fs::set_permissions(secret.path(), Permissions::from_mode(0o755)).unwrap();
    let mut action = Action::new();
    action
        .isolation
        .hide
        .extend([folder.clone(), folder.join("key"), link]);
    let script = format!(
        "ls -A {0} /root /home /run; cat {1}; touch {0}/x || touch /run/x || echo x > {1} || echo refused",
        folder.display(),
        file.display()
    );
    let output = action.output_of(fixture, &script);
    let expected = [
        "/home:",
        "/root:",
        "/run:",
        &format!("{}:", folder.display()),
    ];
    let mut lines: Vec<_> = output.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.pop(), Some("refused"), "{output}");
    lines.sort_unstable();
    assert_eq!(lines, expected, "{output}");
}

fn isolated_writable_path_reaches_the_host(fixture: &Fixture) {
    let host = TempDir::new_in("/var/tmp").unwrap();
    let hidden = host.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("key"), "secret").unwrap();
    chown(host.path(), user(), user()).unwrap();
    let mut action = Action::new();
    action.isolation.writable = vec![host.path().to_owned()];
    action.isolation.hide.push(hidden.clone());
    let script = format!(
        "echo kept > {}/file; ls -A {1}; touch {1}/x || true",
        host.path().display(),
        hidden.display()
    );
    assert_eq!(action.output_of(fixture, &script), "");
    assert!(!hidden.join("x").exists());
    assert_eq!(
        fs::read_to_string(host.path().join("file")).unwrap(),
        "kept\n"
    );
}

fn isolated_temporary_files_are_gone_afterwards(fixture: &Fixture) {
    let name = format!("gorego-{}", std::process::id());
    let action = Action::new();
    let script = format!(
        "echo x > /tmp/{name} && echo x > /dev/shm/{name} && ipcmk -Q >/dev/null
         ls /tmp /dev/shm; tail -n +2 /proc/sysvipc/msg | wc -l
         head -c 2000000 /dev/zero > /dev/shm/large || echo too large"
    );
    let output = action.output_of(fixture, &script);
    let expected = format!("/dev/shm:\n{name}\n\n/tmp:\n{name}\n1\ntoo large\n");
    assert_eq!(output, expected);
    assert!(!fs::exists(format!("/tmp/{name}")).unwrap());
    assert!(!fs::exists(format!("/dev/shm/{name}")).unwrap());
    assert!(action.tmp.path().join(&name).exists());
    let after = Action::new().output_of(
        fixture,
        "ls /tmp /dev/shm; tail -n +2 /proc/sysvipc/msg | wc -l",
    );
    assert_eq!(after, "/dev/shm:\n\n/tmp:\n0\n");
}

fn isolated_leftovers_are_killed_and_counted(fixture: &Fixture) {
    let (watch, writer) = Watch::new();
    let action = Action::new();
    let mut launch = action.script(&format!("{LEAVE_PROCESSES} exit 3"));
    launch.stdout = writer;
    let ended = fixture.run(launch).unwrap();
    watch.gone();
    assert_eq!(ended.exit, Exit::Code(3));
    assert!(ended.leftovers.count >= 4, "{:?}", ended.leftovers);
}

fn isolated_timeout_lets_a_command_clean_up(fixture: &Fixture) {
    let action = Action::new();
    let run = |script, kill_delay| {
        let mut launch = action.script(script);
        launch.timeout = Duration::from_secs(5);
        launch.kill_delay = kill_delay;
        let ended: Ended = fixture.run(launch).unwrap();
        assert!(ended.timed_out && !ended.stopped);
        ended.exit
    };
    let script = "trap 'echo cleaned; exit 7' TERM; while :; do sleep 0.01; done";
    assert_eq!(run(script, Duration::from_mins(10)), Exit::Code(7));
    assert_eq!(action.root.output(), "cleaned\n");
    let script = "trap '' TERM; while :; do sleep 0.01; done";
    assert_eq!(run(script, Duration::from_millis(1)), Exit::Signal(9));
}

fn isolated_refusals_are_those_of_any_command(fixture: &Fixture) {
    let action = Action::new();
    let refused = fixture.run(action.launch(&["/nothing/tool"]));
    assert!(
        matches!(refused, Err(LaunchError::NotExecutable { .. })),
        "{refused:?}"
    );
    let mut launch = action.launch(&["true"]);
    "nothing".clone_into(&mut launch.working_directory);
    let refused = fixture.run(launch);
    assert!(
        matches!(refused, Err(LaunchError::NoWorkingDirectory(_))),
        "{refused:?}"
    );
    let mut launch = action.launch(&["true"]);
    launch.user = Some(0);
    let refused = fixture.run(launch);
    assert!(
        user().is_none() || matches!(refused, Err(LaunchError::Isolation(_))),
        "{refused:?}"
    );
}

fn isolated_resource_use_is_reported(fixture: &Fixture) {
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; kill -USR1 $$";
    let ended = fixture.run(Action::new().script(script)).unwrap();
    assert_eq!(ended.exit, Exit::Signal(10));
    assert!(ended.usage.user > Duration::ZERO);
    assert!(ended.ended >= ended.started);
}

fn isolated_network_is_as_new_for_each_command(fixture: &Fixture) {
    // Nobody may configure it.
    let configure = "if (echo 1 >/proc/sys/net/ipv4/ip_forward) 2>/dev/null; then exit 1; fi";
    let send = "bash -c 'echo hello >/dev/udp/127.0.0.1/53'";
    let count = "grep '^Udp: [0-9]' /proc/net/snmp | tr -d '0 \n'";
    for _ in 0..3 {
        let sent =
            Action::new().output_of(fixture, &format!("{configure}; {count}; {send}; {count}"));
        assert_eq!(sent, "Udp:Udp:11", "a datagram out and none for a port");
        let plain = Action::new().output_of(fixture, count);
        assert_eq!(plain, "Udp:");
    }
}

fn isolated_tests_pass_as_an_ordinary_user(_: &Fixture) {
    if !getuid().is_root() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let program = directory.path().join("suite");
    // By another process: a test that forks would inherit the open copy, which could then not be executed.
    let mut copy = Command::new("cp");
    let copied = copy.arg(env::current_exe().unwrap()).arg(&program).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(ORDINARY), Some(ORDINARY)).unwrap();
    let output = Command::new(program)
        .arg("isolat")
        .uid(ORDINARY)
        .gid(ORDINARY)
        .env("TMPDIR", &home)
        .current_dir(&home)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("... ok"), "{text}");
}

/// Runs the tests once more where namespaces are forbidden.
fn isolation_that_is_forbidden_is_explained(_: &Fixture) {
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" isolation_forbidden_here";
    let output = Command::new("unshare")
        .args(["-Ur", "sh", "-c", script])
        .arg(env::current_exe().unwrap())
        // Gives up other groups, which cannot be done inside.
        .uid(getuid().as_raw())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        text, "test isolation_forbidden_here_is_explained ... ok\n",
        "{errors}"
    );
}

fn isolation_forbidden_here_is_explained(fixture: &Fixture) {
    let Level::Plain(why) = level(fixture) else {
        panic!("the probe has changed its mind");
    };
    assert!(
        why.contains("failed: ") || why.contains("no user namespaces: "),
        "{why}"
    );
    let zero = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap() == "0\n";
    assert!(
        !zero || why.ends_with("sysctl user.max_user_namespaces is 0"),
        "{why}"
    );
}
