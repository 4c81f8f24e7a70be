//! Tests of the level at which a server isolates actions, and of the settings that demand one.
#![cfg(test)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

use gorego_integration::{
    binary,
    executor::{Executor, TestAction, succeeded},
    metrics::Metrics,
    project, sandbox,
    server::{Server, User, refusal_as},
};
use rustix::process::geteuid;
use tempfile::TempDir;
use tonic::Code;

const ON: &str = "execution.enabled=true";
const METRICS: &str = "telemetry.metrics_addr=127.0.0.1:0";
const NETWORK: &str = "execution.sandbox.network_isolation=true";

/// Returns the line of the banner about the execution of actions.
fn banner(server: &Server) -> String {
    let log = server.wait_for_log("for Bazel");
    let mut lines = log.lines().filter(|line| line.starts_with("executing "));
    lines.next().expect("a line of the banner").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_without_namespaces_gets_a_warning_and_level_plain_by_default() {
    if !User::can_confine() {
        return;
    }
    let server = Server::start_as(User::Confined, None, &[ON]);
    let banner = banner(&server);
    assert!(
        banner.contains("not isolated: no user namespaces"),
        "{banner}"
    );
    server.wait_for_log("\"WARN\",\"message\":\"actions are not isolated");
    assert_is_confined(&server).await;
}

/// Checks that an action changes files in its own directory, but not the data of its server if there is Landlock.
async fn assert_is_confined(server: &Server) {
    let executor = Executor::connect(server.address()).await;
    let file = server.data().join("file");
    let script = format!("echo b >{}; echo a >out; echo a", file.display());
    let action = TestAction::script(&script).output("out");
    let result = succeeded(executor.execute(&action).await);
    assert_eq!(executor.stdout(&result).await, "a\n");
    assert_eq!(executor.file(&result, "out").await, "a\n");
    let line = "actions change files only in their own directories";
    assert_eq!(server.log().contains(line), sandbox::has_landlock());
    assert_ne!(file.exists(), sandbox::has_landlock());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_without_mounts_isolates_processes_and_the_network() {
    if !User::can_confine() {
        return;
    }
    let server = Server::start_as(User::Mountless, None, &[ON, METRICS, NETWORK]);
    let banner = banner(&server);
    assert!(
        banner.contains("isolated except for files: no mount namespaces"),
        "{banner}"
    );
    server.wait_for_log("\"WARN\",\"message\":\"actions are isolated except for files");
    let metrics = Metrics::of(server.metrics()).await;
    let name = "gorego_execution_sandbox_level{level=\"processes\"}";
    assert_eq!(metrics.get(name), Some(1));
    let executor = Executor::connect(server.address()).await;
    let port = server.address().port();
    let script = format!(
        "echo $$; tail -n +3 /proc/net/dev | tr -d ' ' | cut -d: -f1; cat input >out
        bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' 2>/dev/null && echo reached
        test -d $TMPDIR && test $TMPDIR != /tmp && test $HOME = $TMPDIR && sleep 1000 &
        exec true"
    );
    let action = TestAction::script(&script).input("input", "content\n");
    let result = executor.execute(&action.output("out")).await;
    assert!(
        result.message.contains("outlived the command, killed: "),
        "{}",
        result.message
    );
    let result = succeeded(result);
    assert_eq!(executor.stdout(&result).await, "2\nlo\n");
    assert_eq!(executor.file(&result, "out").await, "content\n");
    assert_is_confined(&server).await;
    let refused = executor
        .refusal(&TestAction::script("true").property("network", "on"))
        .await;
    assert!(
        refused
            .message()
            .contains("execution.sandbox.allow_network"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_an_action_without_mounts_alters_is_found() {
    if !User::can_confine() {
        return;
    }
    let server = Server::start_as(User::Mountless, None, &[ON]);
    let executor = Executor::connect(server.address()).await;
    let script = "chmod u+w input; echo more >>input; cat input";
    let action = TestAction::script(script).input("input", "content\n");
    // The blob is in quarantine, so that it has to be uploaded again.
    let response = executor.execute(&action).await;
    let status = response.status.expect("a failure");
    assert_eq!(status.code, Code::FailedPrecondition as i32, "{status:?}");
    server.wait_for_log("inputs were altered");
    let reader = TestAction::script("cat input").input("input", "content\n");
    let result = succeeded(executor.execute(&reader).await);
    assert_eq!(executor.stdout(&result).await, "content\n");
}

#[test]
fn files_that_are_to_be_isolated_and_cannot_be_prevent_the_start() {
    if !User::can_confine() {
        return;
    }
    for setting in [
        "execution.sandbox.enabled=true",
        "execution.sandbox.hide=/opt",
    ] {
        let (key, _) = setting.split_once('=').unwrap();
        let (status, log) = refusal_as(User::Mountless, &[ON, setting]);
        assert_eq!(status.code(), Some(2), "{log}");
        let expected = format!(
            "{key}: actions would not be isolated from the files of this machine: no mount namespaces"
        );
        assert!(log.contains(&expected), "{log}");
        let remedy = "; accepted: this key unset, or execution.sandbox.enabled: false";
        assert!(log.contains(remedy), "{log}");
    }
    let server = Server::start_as(User::Mountless, None, &[]);
    let banner = banner(&server);
    let expected = "executing no actions: actions would not be isolated from the files of this \
                    machine: no mount namespaces";
    assert!(banner.starts_with(expected), "{banner}");
    let remedy = "; execution.enabled: true executes them all the same";
    assert!(banner.ends_with(remedy), "{banner}");
}

#[test]
fn isolation_that_was_set_and_cannot_be_had_prevents_the_start() {
    if !User::can_confine() {
        return;
    }
    for setting in [
        "execution.sandbox.enabled=true",
        "execution.sandbox.network_isolation=true",
        "execution.sandbox.hide=/opt",
    ] {
        let (key, _) = setting.split_once('=').unwrap();
        for settings in [&[ON, setting][..], &[setting]] {
            let (status, log) = refusal_as(User::Confined, settings);
            assert_eq!(status.code(), Some(2), "{log}");
            let expected = format!("{key}: actions would not be isolated: no user namespaces");
            assert!(log.contains(&expected), "{log}");
        }
    }
    let absent = "execution.sandbox.writable_paths=/no/such/path";
    let off = "execution.sandbox.enabled=false";
    drop(Server::start_as(User::Confined, None, &[ON, off, absent]));
}

#[test]
fn a_writable_path_that_does_not_exist_prevents_the_start() {
    let absent = "execution.sandbox.writable_paths=/no/such/path";
    for user in User::all() {
        let (status, log) = refusal_as(user, &[ON, absent]);
        assert_eq!(status.code(), Some(2), "{log}");
        let expected = "execution.sandbox.writable_paths: /no/such/path: No such file";
        assert!(log.contains(expected), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_executed_by_default_for_an_ordinary_user_on_loopback() {
    for user in User::all() {
        let server = Server::start_as(user, None, &[]);
        let banner = banner(&server);
        if geteuid().is_root() && user == User::Own {
            let expected =
                "executing no actions: gorego runs as root; execution.enabled: true turns it on";
            assert_eq!(banner, expected);
            continue;
        }
        assert!(banner.starts_with("executing up to "), "{banner}");
        let executor = Executor::connect(server.address()).await;
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
    let server = Server::start(&["listen_addr=:0"]);
    let expected = "executing no actions: listen_addr is not a loopback address; \
                    execution.enabled: true turns it on";
    assert_eq!(banner(&server), expected);
}

#[test]
fn execution_that_cannot_start_by_default_leaves_a_cache() {
    for user in User::all() {
        if geteuid().is_root() && user == User::Own {
            continue;
        }
        let settings = ["execution.build_root=/proc/no/such/folder"];
        let server = Server::start_as(user, None, &settings);
        let banner = banner(&server);
        assert!(banner.starts_with("executing no actions: "), "{banner}");
        assert!(banner.contains("execution.build_root"), "{banner}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_go_program_executes_actions_at_level_plain() {
    let sample = project::root().join("pkg/config/tests/data/go-program.yaml");
    let sample = fs::read_to_string(sample).unwrap();
    for user in User::all() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let [data, builds, file] = ["data", "gorego", "go.yaml"].map(|name| dir.path().join(name));
        for path in [&data, &builds] {
            fs::create_dir(path).unwrap();
            user.give(path);
        }
        let text = sample
            .replace("/srv/gorego/cache", data.to_str().unwrap())
            .replace(
                "/srv/gorego/builds",
                builds.join("builds").to_str().unwrap(),
            );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let dir = format!("local_cache.dir={}", data.display());
        let server = Server::start_as(user, Some(&file), &[&dir]);
        let banner = banner(&server);
        let expected = "not isolated: execution.sandbox.enabled is false";
        assert!(banner.ends_with(expected), "{banner}");
        let executor = Executor::connect(server.address()).await;
        let result = succeeded(executor.execute(&TestAction::script("id -u")).await);
        let id = executor.stdout(&result).await;
        assert_ne!(id.trim(), "0");
    }
}

#[test]
fn the_command_config_tells_the_level() {
    let dir = TempDir::new().unwrap();
    let tell = |settings: &[&str]| {
        let mut command = Command::new(binary::gorego());
        command.current_dir(dir.path()).arg("config");
        for setting in settings {
            command.args(["--set", setting]);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().last().unwrap().to_owned()
    };
    let root = "execution.run_as_root=true";
    let off = "execution.sandbox.enabled=false";
    assert_eq!(
        tell(&[ON, root, off]),
        "# executes actions at level plain: not isolated: execution.sandbox.enabled is false"
    );
    assert_eq!(
        tell(&["execution.enabled=false"]),
        "# executes no actions: execution.enabled is false"
    );
    if !User::all().is_empty() {
        let told = tell(&[ON]);
        let is_full = told == "# executes actions at level full: isolated";
        assert!(
            is_full || told.contains("not isolated: no user namespaces"),
            "{told}"
        );
    }
}

#[test]
fn a_program_that_is_no_sandbox_prevents_the_start_only_where_a_sandbox_is_demanded() {
    let absent = "execution.sandbox.binary_path=/no/such/sandbox";
    for user in User::all() {
        let on = "execution.sandbox.enabled=true";
        let (status, log) = refusal_as(user, &[ON, on, absent]);
        assert_eq!(status.code(), Some(2), "{log}");
        let expected = "execution.sandbox.binary_path: /no/such/sandbox cannot isolate actions: \
                        executing /no/such/sandbox failed: No such file";
        assert!(log.contains(expected), "{log}");
        let server = Server::start_as(user, None, &[ON, absent]);
        let banner = banner(&server);
        assert!(!banner.contains("/no/such/sandbox"), "{banner}");
        let warning = "execution.sandbox.binary_path: /no/such/sandbox is not used: ";
        server.wait_for_log(warning);
        let off = "execution.sandbox.enabled=false";
        let server = Server::start_as(user, None, &[ON, off, absent]);
        let log = server.wait_for_log("for Bazel");
        assert!(!log.contains("/no/such/sandbox"), "{log}");
    }
}

#[test]
fn files_that_another_sandbox_does_not_hide_are_named_as_such() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let program = sandbox::without_effect(dir.path());
    let program = program.to_str().unwrap();
    let setting = format!("execution.sandbox.binary_path={program}");
    let lack = format!(
        "{program} would hide no files of this machine from actions (execution.sandbox.binary_path); "
    );
    for user in User::all() {
        let server = Server::start_as(user, None, &[ON, &setting]);
        let expected = format!(", isolated by {program}, which hides no files");
        assert!(banner(&server).ends_with(&expected), "{}", banner(&server));
        let hide = "execution.sandbox.hide=/opt";
        let (status, log) = refusal_as(user, &[ON, &setting, hide]);
        assert_eq!(status.code(), Some(2), "{log}");
        let expected = format!(
            "execution.sandbox.hide: {lack}accepted: this key unset, execution.sandbox.binary_path unset, or \
             execution.sandbox.enabled: false"
        );
        assert!(log.contains(&expected), "{log}");
        if geteuid().is_root() && user == User::Own {
            continue;
        }
        let server = Server::start_as(user, None, &[&setting]);
        let expected = format!(
            "executing no actions: {lack}execution.enabled: true executes them all the same"
        );
        assert_eq!(banner(&server), expected);
    }
}
