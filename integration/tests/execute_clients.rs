//! Tests with remotetool and siso as clients of the executor.
#![cfg(test)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use gorego_integration::{install, process, root, server::Server, tree, workspace::write};
use tempfile::TempDir;

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
