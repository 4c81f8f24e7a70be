//! Tests with recc, trexe, casupload and casdownload.
#![cfg(test)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use gorego_integration::{
    backing::Backing,
    process::{Process, describe},
    root,
    server::Server,
    tree::{self, Entry},
    web,
    workspace::write,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const UNITS: [&str; 3] = ["main", "sum", "text"];

fn run(command: &mut Command) {
    let status = Process::spawn(command.stdout(Stdio::null())).wait();
    assert!(status.success(), "{command:?}: {}", describe(status));
}

fn write_program(dir: &Path) {
    write(dir, "sum.h", "int sum(int a, int b);\n");
    write(
        dir,
        "sum.cc",
        "#include \"sum.h\"\nint sum(int a, int b) { return a + b; }\n",
    );
    write(
        dir,
        "text.h",
        "#include <string>\nstd::string text(int number);\n",
    );
    let text =
        "#include \"text.h\"\nstd::string text(int number) { return std::to_string(number); }\n";
    write(dir, "text.cc", text);
    let main = "#include \"sum.h\"\n#include \"text.h\"\nint main() { return text(sum(1, 2)) != \"3\"; }\n";
    write(dir, "main.cc", main);
}

/// Settings with which recc runs the compiler itself, and only caches.
const CACHE: [(&str, &str); 2] = [
    ("RECC_CACHE_ONLY", "1"),
    ("RECC_CACHE_UPLOAD_LOCAL_BUILD", "1"),
];

/// Settings with which the server runs the compiler.
const EXECUTE: [(&str, &str); 0] = [];

type Settings<'a> = &'a [(&'a str, &'a str)];

/// Returns the command that runs a compiler through recc in `dir`.
fn recc_command(
    server: &Server,
    dir: &Path,
    settings: Settings<'_>,
    arguments: &[&str],
) -> Command {
    let mut command = root::command(dir, "recc");
    command
        .arg("g++")
        .args(arguments)
        .env("RECC_SERVER", server.http_url())
        .env("RECC_PROJECT_ROOT", dir)
        .env("RECC_LINK", "1")
        .envs(settings.iter().copied());
    command
}

/// Runs a compiler through recc in `dir` and returns recc's metrics.
fn recc(server: &Server, dir: &Path, settings: Settings<'_>, arguments: &[&str]) -> String {
    let metrics = dir.join("recc.metrics");
    let mut command = recc_command(server, dir, settings, arguments);
    command
        .env("RECC_ENABLE_METRICS", "1")
        .env("RECC_METRICS_FILE", &metrics);
    run(&mut command);
    let counted = fs::read_to_string(&metrics).expect("recc writes its metrics");
    fs::remove_file(&metrics).unwrap();
    counted
}

/// Compiles and links the program in `dir`. Returns the outputs, and whether each step was a cache hit.
fn compile(server: &Server, dir: &Path, settings: Settings<'_>) -> (Vec<Vec<u8>>, Vec<bool>) {
    let objects = UNITS.map(|unit| format!("{unit}.o"));
    let mut hits = Vec::new();
    for (unit, object) in UNITS.iter().zip(&objects) {
        let source = format!("{unit}.cc");
        let counted = recc(server, dir, settings, &["-c", &source, "-o", object]);
        hits.push(is_hit(&counted, "recc.action_cache"));
    }
    let mut link: Vec<&str> = objects.iter().map(String::as_str).collect();
    link.extend(["-o", "program"]);
    hits.push(is_hit(
        &recc(server, dir, settings, &link),
        "recc.link_action_cache",
    ));
    run(&mut Command::new(dir.join("program")));
    let made = link.iter().filter(|&&name| name != "-o");
    (
        made.map(|name| fs::read(dir.join(name)).unwrap()).collect(),
        hits,
    )
}

fn is_hit(counted: &str, counter: &str) -> bool {
    let hit = counted.contains(&format!("{counter}_hit:1|c"));
    let miss = counted.contains(&format!("{counter}_miss:1|c"));
    assert!(hit != miss, "neither hit nor miss, or both:\n{counted}");
    hit
}

#[test]
fn recc_hits_in_a_second_compilation() {
    let server = Server::start(&[]);
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write_program(here.path());
    write_program(there.path());
    let (first, hits) = compile(&server, here.path(), &CACHE);
    assert_eq!(hits, [false; 4]);
    let (second, hits) = compile(&server, there.path(), &CACHE);
    assert_eq!(hits, [true; 4]);
    assert!(first == second, "the object files differ");
}

/// Starts a server that executes actions with the programs of the root.
fn executor() -> Server {
    Server::start_in_root(&["execution.enabled=true"])
}

#[test]
fn a_compilation_that_recc_sends_here_has_the_outputs_of_a_local_one() {
    let server = executor();
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let [here, there, local] = dirs.each_ref().map(TempDir::path);
    for dir in [here, there, local] {
        write_program(dir);
    }
    let (first, hits) = compile(&server, here, &EXECUTE);
    assert_eq!(hits, [false; 4]);
    let (second, hits) = compile(&server, there, &EXECUTE);
    assert_eq!(hits, [true; 4]);
    let cache = Server::start(&[]);
    let (third, _) = compile(&cache, local, &CACHE);
    assert!(first == second && first == third, "the outputs differ");
}

#[test]
fn recc_shows_the_errors_of_a_compiler_that_ran_here() {
    let server = executor();
    let dir = TempDir::new().unwrap();
    write(dir.path(), "wrong.cc", "int wrong() { return absent; }\n");
    let arguments = ["-c", "wrong.cc", "-o", "wrong.o"];
    let output = recc_command(&server, dir.path(), &EXECUTE, &arguments).output();
    let output = output.expect("recc starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("wrong.cc:1:22: error: "), "{stderr}");
    assert!(!dir.path().join("wrong.o").exists());
}

/// Runs trexe in `dir` and returns what it and its command print.
fn trexe(server: &Server, dir: &Path, arguments: &[&str]) -> Output {
    let mut command = root::command(dir, "trexe");
    command.arg(format!("--remote={}", server.http_url()));
    command.args(arguments).output().expect("trexe starts")
}

/// Returns what the command printed to each of its streams, and its exit code.
fn said(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (stdout, stderr, output.status.code())
}

#[test]
fn a_command_that_trexe_sends_here_has_its_inputs_outputs_and_exit_code() {
    let server = executor();
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source");
    write(&source, "deep/er/text.txt", "content\n");
    symlink("er/text.txt", source.join("deep/link")).unwrap();
    let script = "#!/bin/sh\ncat deep/link\necho to stderr >&2\nmkdir -p made/er\n\
        cp deep/link made/er/copy\nln -s er/copy made/link\nexit $1\n";
    write(&source, "run.sh", script);
    fs::set_permissions(source.join("run.sh"), Permissions::from_mode(0o755)).unwrap();
    let execute = |code: &str| {
        let copy = dir.path().join(code);
        let output = format!("--d={}", copy.display());
        let inputs = ["--do-not-follow-symlinks", "--input-path=."];
        let outputs = ["--output-path=made", &output];
        let arguments = [inputs, outputs, ["./run.sh", code]].concat();
        let output = trexe(&server, &source, &arguments);
        let code = code.parse().ok();
        assert_eq!(
            said(&output),
            ("content\n".to_owned(), "to stderr\n".to_owned(), code)
        );
        tree::snapshot(&copy.join("made"))
    };
    let made = execute("0");
    let names: Vec<_> = made.keys().filter_map(|path| path.to_str()).collect();
    assert_eq!(names, ["er", "er/copy", "link"]);
    assert!(matches!(made[Path::new("link")], Entry::Symlink(_)));
    assert_eq!(execute("3"), made);
}

#[test]
fn trexe_leaves_and_comes_back_for_the_outputs_of_a_command() {
    let server = executor();
    let dir = TempDir::new().unwrap();
    let script = "sleep 1; echo late > made";
    let arguments = ["--no-wait", "--output-path=made", "/bin/sh", "-c", script];
    let (operation, stderr, code) = said(&trexe(&server, dir.path(), &arguments));
    assert_eq!(code, Some(0), "{stderr}");
    let operation = format!("--operation={}", operation.trim_end());
    let arguments = ["--wait", "--d=there", &operation];
    let (_, stderr, code) = said(&trexe(&server, dir.path(), &arguments));
    assert_eq!(code, Some(0), "{stderr}");
    let made = fs::read_to_string(dir.path().join("there/made"));
    assert_eq!(made.unwrap(), "late\n");
}

/// Checks that recc hits through one proxy for results that it stored through another.
fn assert_shared(backing: &Backing) {
    let near = Server::in_front_of(&backing.grpc_url(), &[]);
    let far = Server::in_front_of(&backing.grpc_url(), &[]);
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write_program(here.path());
    write_program(there.path());
    let (first, hits) = compile(&near, here.path(), &CACHE);
    assert_eq!(hits, [false; 4]);
    let (second, hits) = compile(&far, there.path(), &CACHE);
    assert_eq!(hits, [true; 4]);
    assert!(first == second, "the object files differ");
}

#[test]
fn recc_hits_through_another_proxy_of_gorego() {
    assert_shared(&Backing::gorego(&[]));
}

#[test]
fn recc_hits_through_another_proxy_of_bazel_remote() {
    assert_shared(&Backing::bazel_remote());
}

#[test]
fn recc_hits_through_another_proxy_of_casd() {
    assert_shared(&Backing::casd());
}

/// Compiles a file through recc, in a build with this id. Returns the build, once its result is recorded.
async fn recc_build(server: &Server, dir: &Path, id: &str) -> Value {
    let mut command = recc_command(server, dir, &CACHE, &["-c", "sum.cc", "-o", "sum.o"]);
    command
        .env("RECC_TOOL_INVOCATION_ID", id)
        .env("RECC_CORRELATED_INVOCATIONS_ID", "release");
    run(&mut command);
    let path = format!("/api/v1/builds/{id}");
    let is_recorded = |response: &web::Response| {
        response.status == 200 && {
            let total = &response.json()["head"]["total"];
            total["hits"] == 1 || total["stored"] == 1
        }
    };
    let build = web::wait_for(server.metrics(), &path, is_recorded).await;
    build.json()
}

#[tokio::test]
async fn runs_of_recc_are_shown_as_builds_with_the_causes_of_their_misses() {
    let server = Server::start(&["telemetry.metrics_addr=127.0.0.1:0"]);
    let dir = TempDir::new().unwrap();
    write_program(dir.path());
    let first = recc_build(&server, dir.path(), "first").await;
    let (head, misses) = (&first["head"], &first["misses"]);
    assert_eq!(
        [&head["id"], &head["correlated_id"], &head["tool"]],
        ["first", "release", "recc"]
    );
    assert_eq!(misses.as_array().map(Vec::len), Some(1), "{misses}");
    assert_eq!(misses[0]["output"], "sum.o");
    let explained = &misses[0]["explanation"];
    assert_eq!(explained["cause"]["kind"], "never_seen");
    let sentence = explained["sentence"].as_str().unwrap();
    assert!(
        sentence.contains("the client names no target"),
        "{sentence}"
    );

    let second = recc_build(&server, dir.path(), "second").await;
    let total = &second["head"]["total"];
    assert_eq!((&total["hits"], &total["misses"]), (&json!(1), &json!(0)));
    let builds = web::get(server.metrics(), "/api/v1/builds").await.json();
    let ids = [0, 1].map(|at| &builds["builds"][at]["id"]);
    assert_eq!(ids, ["second", "first"]);
    assert_eq!(builds["total"], 2);
    assert_eq!(builds["without_build"]["misses"], 0);
}

/// Writes a tree with all properties of a `Directory` message.
fn write_tree(dir: &Path) {
    fs::create_dir_all(dir.join("empty")).unwrap();
    fs::create_dir_all(dir.join("nested/empty/too")).unwrap();
    write(dir, "plain.txt", "plain\n");
    write(dir, "nothing", "");
    write(dir, "nested/deeper/same.txt", "plain\n");
    write(dir, "nested/run.sh", "#!/bin/sh\n");
    fs::set_permissions(dir.join("nested/run.sh"), Permissions::from_mode(0o755)).unwrap();
    for number in 0..300 {
        let content = format!("{number}\n").repeat(number * 20);
        write(dir, &format!("many/{number}.txt"), &content);
    }
    fs::write(
        dir.join("large.bin"),
        gorego_integration::content::blob(1, 6_000_000),
    )
    .unwrap();
    symlink("plain.txt", dir.join("link")).unwrap();
    symlink("nested", dir.join("link-to-directory")).unwrap();
    symlink("../no/such/file", dir.join("nested/dangling")).unwrap();
}

#[test]
fn casdownload_restores_the_tree_that_casupload_stored() {
    let server = Server::start(&[]);
    let dir = TempDir::new().unwrap();
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    write_tree(&source);
    let digest = dir.path().join("digest");

    let mut upload = root::command(&source, "casupload");
    upload.arg(format!("--remote={}", server.http_url()));
    upload.arg(format!("--output-digest-file={}", digest.display()));
    run(upload.arg("."));
    let digest = fs::read_to_string(&digest).expect("casupload writes the digest");
    let server = server.restart();
    let mut download = root::command(dir.path(), "casdownload");
    download.arg(format!("--remote={}", server.http_url()));
    download.arg(format!("--destination-dir={}", copy.display()));
    run(download.arg(format!("--root-digest={}", digest.trim())));

    let (source, copy) = (tree::snapshot(&source), tree::snapshot(&copy));
    assert!(
        source
            .values()
            .any(|entry| matches!(entry, Entry::Symlink(_)))
    );
    assert_eq!(copy, source);
}
