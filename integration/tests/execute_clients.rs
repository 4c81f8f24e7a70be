//! Tests with remotetool and siso as clients of the executor.
#![cfg(test)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use gorego_integration::{
    executor::{Executor, TestAction, succeeded},
    install, process, root,
    server::Server,
    tree,
    workspace::write,
};
use tempfile::TempDir;
use tonic::Code;

/// Starts a server that executes actions with the programs of the root.
fn executor() -> Server {
    Server::start_in_root(&["execution.enabled=true"])
}

/// Returns what the command printed, and whether it succeeded.
fn said(command: &mut Command) -> (String, bool) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the client starts");
    let stdout = String::from_utf8_lossy(&stdout);
    let said = format!("{stdout}{}", String::from_utf8_lossy(&stderr));
    (said, status.success())
}

/// Runs an operation of remotetool on the action in `dir`.
fn remotetool(server: &Server, dir: &Path, arguments: &[&str]) -> (String, bool) {
    let mut command = process::command(install::remotetool());
    command
        .args(["-service_no_security", "-alsologtostderr", "-service"])
        .arg(server.address().to_string())
        .args(["-action_root", ".", "-operation"])
        .args(arguments)
        .current_dir(dir);
    said(&mut command)
}

/// Writes an action for remotetool, whose script reads `d/in` and writes to `out.txt` and `dir`.
fn write_action(dir: &Path, script: &str) {
    write(dir, "input/d/in", "input\n");
    write(dir, "ac.textproto", "timeout { seconds: 60 }\n");
    let command = format!(
        "arguments: \"/bin/sh\"\narguments: \"-c\"\narguments: {script:?}\n\
         output_files: \"out.txt\"\noutput_directories: \"dir\"\n\
         platform {{ properties {{ name: \"OSFamily\" value: \"Linux\" }} }}\n"
    );
    write(dir, "cmd.textproto", &command);
}

#[test]
fn remotetool_executes_an_action_and_downloads_its_outputs() {
    let server = executor();
    let dir = TempDir::new().unwrap();
    let script =
        "cat d/in > out.txt; mkdir dir; ln -s ../out.txt dir/link; echo said; echo log >&2";
    write_action(dir.path(), script);
    let (said, succeeded) = remotetool(&server, dir.path(), &["execute_action", "-path", "made"]);
    assert!(
        succeeded && said.contains("said\n") && said.contains("log\n"),
        "{said}"
    );
    let made = dir.path().join("made");
    assert_eq!(fs::read_to_string(made.join("out.txt")).unwrap(), "input\n");
    let link = fs::read_link(made.join("dir/link"));
    assert_eq!(link.unwrap(), Path::new("../out.txt"));
}

#[test]
fn remotetool_tells_which_actions_are_deterministic() {
    let server = executor();
    let dir = TempDir::new().unwrap();
    let check = |script: &str| {
        write_action(dir.path(), script);
        remotetool(
            &server,
            dir.path(),
            &["check_determinism", "-exec_attempts", "3"],
        )
    };
    let (said, is_deterministic) = check("mkdir dir; sha256sum d/in > out.txt");
    assert!(is_deterministic, "{said}");
    let (said, is_deterministic) = check("mkdir dir; date +%N > out.txt");
    assert!(!is_deterministic, "{said}");
    assert!(
        said.contains("does not produce a consistent digest for out.txt"),
        "{said}"
    );
}

const SISO_CONFIG: &str = r#"
load("@builtin//encoding.star", "json")
load("@builtin//struct.star", "module")

def init(ctx):
    return module(
        "config",
        step_config = json.encode({
            "platforms": {"default": {"OSFamily": "Linux"}},
            "rules": [{"name": "all", "action": ".*", "remote": True}],
        }),
        filegroups = {},
        handlers = {},
    )
"#;

const NINJA: &str = "
rule cc
  command = gcc -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = gcc $in -o $out
rule run
  command = ./$in > $out
build main.o: cc ../main.c
build sum.o: cc ../sum.c
build program: link main.o sum.o
build said.txt: run program
";

fn write_project(dir: &Path) {
    write(dir, "build/config/siso/main.star", SISO_CONFIG);
    write(dir, "out/build.ninja", NINJA);
    write(dir, "sum.h", "int sum(int a, int b);\n");
    let sum = "#include \"sum.h\"\nint sum(int a, int b) { return a + b; }\n";
    write(dir, "sum.c", sum);
    let main = "#include <stdio.h>\n#include \"sum.h\"\nint main(void) { return printf(\"%d\\n\", sum(1, 2)) < 0; }\n";
    write(dir, "main.c", main);
}

/// Runs siso, which must succeed, in `dir`.
fn siso(server: &Server, dir: &Path) -> String {
    let program = install::siso().to_str().expect("the path is UTF-8");
    let mut command = root::command(dir, program);
    command
        .args(["ninja", "-C", "out", "-strict_remote", "-reapi_insecure"])
        .args(["-reapi_address", &server.address().to_string()])
        // It has the same process id in each run, by which, with the second, it names its log there.
        .env("TMPDIR", dir);
    let (said, succeeded) = said(&mut command);
    assert!(succeeded, "{said}");
    said
}

#[test]
fn the_steps_of_siso_run_here_and_are_hits_in_another_checkout() {
    let server = executor();
    let dirs = [(); 2].map(|()| TempDir::new().unwrap());
    let [here, there] = dirs.each_ref().map(TempDir::path);
    write_project(here);
    write_project(there);
    let said = siso(&server, here);
    assert!(said.contains("local:0 remote:4 cache:0 "), "{said}");
    let said = siso(&server, there);
    assert!(said.contains("local:0 remote:0 cache:4 "), "{said}");
    for dir in [here, there] {
        let said = fs::read_to_string(dir.join("out/said.txt"));
        assert_eq!(said.unwrap(), "3\n");
    }
    let objects =
        [here, there].map(|dir| tree::snapshot(&dir.join("out"))[Path::new("sum.o")].clone());
    assert_eq!(objects[0], objects[1]);
}

/// Returns the path of Bazel's sandbox in the root.
fn linux_sandbox() -> String {
    let debian = root::make().join("debian");
    let libraries = debian.join("usr/libexec");
    let mut folders = fs::read_dir(&libraries).unwrap();
    let mut found = folders.find_map(|folder| {
        let program = folder.unwrap().path().join("bazel/linux-sandbox");
        program.exists().then_some(program)
    });
    let found = found.take().expect("Bazel has a sandbox");
    let inside = found.strip_prefix(&debian).unwrap();
    format!("/{}", inside.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_run_in_the_sandbox_of_bazel() {
    let program = linux_sandbox();
    let setting = format!("execution.sandbox.binary_path={program}");
    let on = ["execution.enabled=true", "execution.sandbox.enabled=true"];
    let server = Server::start_in_root(&[&on[..], &[&setting]].concat());
    let log = server.wait_for_log("for Bazel");
    assert!(log.contains(&format!(", isolated by {program}")), "{log}");
    let executor = Executor::connect(server.address()).await;
    let port = server.address().port();
    let script = format!(
        "cat ../input >out; echo log >&2; hostname; mkdir ../beside
        test $TMPDIR = $HOME && echo x >$TMPDIR/x && echo x >/dev/shm/z
        # The build root is below /tmp, which is read-only then.
        for path in /usr/x /etc/x /tmp/x; do touch $path 2>/dev/null && echo $path; done
        bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' 2>/dev/null && echo reached
        ls /proc | grep -c '^[0-9]'"
    );
    let mut action = TestAction::script(&script)
        .input("input", "content\n")
        .directory("work");
    "work".clone_into(&mut action.command.working_directory);
    let result = succeeded(executor.execute(&action.output("out")).await);
    let output = executor.stdout(&result).await;
    let (hostname, processes) = output.trim_end().split_once('\n').unwrap();
    assert_eq!(hostname, "localhost", "{output}");
    assert!(processes.parse::<u32>().unwrap() <= 6, "{output}");
    assert_eq!(executor.stderr(&result).await, "log\n");
    assert_eq!(executor.file(&result, "out").await, "content\n");
    let failed = executor.execute(&TestAction::script("kill -SEGV $$")).await;
    assert_eq!(failed.result.unwrap().exit_code, 139);
    let late = executor
        .execute(&TestAction::script("echo begun; sleep 1000").timeout(1))
        .await;
    assert_eq!(late.status.unwrap().code, Code::DeadlineExceeded as i32);
    let absent = executor.execute(&TestAction::of(&["/no/such/tool"])).await;
    assert_eq!(absent.status.unwrap().code, Code::FailedPrecondition as i32);
}
