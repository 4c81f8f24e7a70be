//! Commands in the sandbox of another program.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::Duration,
};

use gorego_sandbox::{Exit, Isolation, Launch, LaunchError, Level, Means, has_users};
use tempfile::TempDir;

use crate::{
    Test,
    common::{Fixture, LEAVE_PROCESSES, Watch},
    isolation::{Action, USER},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "external_sandbox_gets_the_options_of_linux_sandbox",
        external_sandbox_gets_the_options_of_linux_sandbox,
    ),
    (
        "external_sandbox_does_not_hide_what_cannot_be_executed",
        external_sandbox_does_not_hide_what_cannot_be_executed,
    ),
    (
        "external_sandbox_leaves_the_timeout_to_the_supervisor",
        external_sandbox_leaves_the_timeout_to_the_supervisor,
    ),
    (
        "external_sandbox_that_does_not_work_is_found_by_trying",
        external_sandbox_that_does_not_work_is_found_by_trying,
    ),
];

/// A program with the interface of `linux-sandbox` that isolates nothing. It prints its options into a file beside it, and
/// passes `SIGTERM` on.
const STAND_IN: &str = "#!/bin/sh
    for option; do [ \"$option\" = -- ] && break; echo \"$option\"; done >$0.options 2>/dev/null
    while [ \"$1\" != -- ]; do shift; done; shift
    trap 'kill -TERM $child' TERM; \"$@\" & child=$!
    while wait $child; status=$?; kill -0 $child 2>/dev/null; do :; done; exit $status
";

/// The stand-in, in a directory of its own that every user can write to.
struct Program(TempDir);

impl Program {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        let program = Self(directory);
        fs::write(program.path(), STAND_IN).unwrap();
        fs::set_permissions(program.path(), Permissions::from_mode(0o755)).unwrap();
        program
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("sandbox")
    }

    /// Returns the options of the last command.
    fn options(&self) -> Vec<String> {
        let options = fs::read_to_string(self.0.path().join("sandbox.options")).unwrap();
        options.lines().map(str::to_owned).collect()
    }

    fn isolation(&self, action: &Action) -> Isolation {
        let mut isolation = action.isolation.clone();
        isolation.by = Means::Program(self.path());
        isolation.writable = vec!["/var/tmp".into()];
        isolation
    }

    fn script(&self, action: &Action, script: &str) -> Launch {
        let mut launch = action
            .root
            .launch(&["sh", "-c", script, "--", "an argument"]);
        launch.isolation = Some(self.isolation(action));
        launch
    }
}

fn external_sandbox_gets_the_options_of_linux_sandbox(fixture: &Fixture) {
    let (program, action) = (Program::new(), Action::new());
    let mut launch = program.script(&action, "echo \"$1\"; exit 3");
    launch.kill_delay = Duration::from_millis(1500);
    let ended = fixture.run(launch).unwrap();
    assert_eq!(ended.exit, Exit::Code(3), "{}", action.root.errors());
    assert_eq!(action.root.output(), "an argument\n");
    assert!(ended.root.is_none());
    let options = program.options();
    let tmp = action.isolation.tmp.to_str().unwrap();
    let root = action.root.path("");
    let root = root.to_str().unwrap().trim_end_matches('/');
    let has = |option, value| options.windows(2).any(|pair| pair == [option, value]);
    for path in [root, tmp, "/var/tmp"] {
        assert!(has("-w", path), "{options:?}");
    }
    // It has a /tmp of its own, unless that would hide its input root.
    let has_own_tmp = !root.starts_with("/tmp/");
    assert_eq!(has("-m", "/tmp"), has_own_tmp, "{options:?}");
    assert_eq!(has("-w", "/tmp"), has_own_tmp, "{options:?}");
    assert!(
        options.ends_with(&["-t", "3", "-H", "-N"].map(str::to_owned)),
        "{options:?}"
    );
    let mut launch = program.script(&action, "true");
    launch.isolation.iter_mut().for_each(|it| it.network = true);
    fixture.run(launch).unwrap();
    assert_eq!(program.options().last().unwrap(), "-H");
}

fn external_sandbox_does_not_hide_what_cannot_be_executed(fixture: &Fixture) {
    let (program, action) = (Program::new(), Action::new());
    for absent in ["/nothing/tool", "nothing", "/usr", "./file"] {
        fs::write(action.root.path("file"), "").unwrap();
        let mut launch = program.script(&action, "");
        launch.argv = vec![absent.to_owned()];
        let refused = fixture.run(launch);
        let is_refused = matches!(refused, Err(LaunchError::NotExecutable { .. }));
        assert!(is_refused, "{absent}: {refused:?}");
    }
}

fn external_sandbox_leaves_the_timeout_to_the_supervisor(fixture: &Fixture) {
    let (program, action) = (Program::new(), Action::new());
    let (watch, writer) = Watch::new();
    let script = format!("{LEAVE_PROCESSES} trap 'exit 7' TERM; while :; do sleep 0.01; done");
    let mut launch = program.script(&action, &script);
    launch.stdout = writer;
    launch.timeout = Duration::from_secs(5);
    launch.kill_delay = Duration::from_mins(10);
    let ended = fixture.run(launch).unwrap();
    watch.gone();
    assert!(ended.timed_out);
    assert_eq!(ended.exit, Exit::Code(7));
}

fn external_sandbox_that_does_not_work_is_found_by_trying(fixture: &Fixture) {
    let (program, action) = (Program::new(), Action::new());
    let probe = |by: &str| {
        let mut isolation = program.isolation(&action);
        isolation.by = Means::Program(by.into());
        let root = action.root.launch(&[]).root;
        let user = has_users(&(USER..USER + 1)).then_some(USER);
        fixture.wait(fixture.launcher.probe(root, user, isolation))
    };
    let path = program.path();
    let level = probe(path.to_str().unwrap()).unwrap();
    assert_eq!(level, Level::External(path));
    for (broken, expected) in [
        (
            "/nothing/sandbox",
            "executing /nothing/sandbox failed: No such file",
        ),
        ("/bin/cat", "it ended with exit code 1: /bin/cat: "),
        ("/bin/true", "it ended with exit code 0: "),
    ] {
        match probe(broken).unwrap() {
            Level::Plain(why) => assert!(why.contains(expected), "{why}"),
            other => panic!("{broken}: {other:?}"),
        }
    }
}
