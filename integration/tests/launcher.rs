//! Tests of `tools/bazel`, which finds a Bazel, and of `tools/client-root`, which creates the root for it.
#![cfg(test)]

use std::{
    env,
    ffi::OsString,
    fs::{self, Permissions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use gorego_integration::{
    process::{self, Process},
    project, root,
};
use tempfile::TempDir;

/// Programs that replace those of the machine.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// Adds a shell script.
    fn with(self, name: &str, script: &str) -> Self {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Returns the search path: these programs, then those of the system.
    fn path(&self) -> OsString {
        let mut path = self.0.path().as_os_str().to_owned();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        path
    }
}

/// Returns the command of a script in `tools`, with its own cache directory.
fn script(name: &str, programs: &Programs, cache: &Path) -> Command {
    let mut command = process::command(project::root().join("tools").join(name));
    for (key, _) in env::vars_os() {
        if key.as_encoded_bytes().starts_with(b"GOREGO_") {
            command.env_remove(key);
        }
    }
    command
        .env("PATH", programs.path())
        .env("XDG_CACHE_HOME", cache)
        .env_remove("BAZEL_REAL")
        .stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

/// Starts a registry of modules that answers one request, and returns its address.
fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        // Without curl, the script only tries to connect.
        if connection.read(&mut request).is_ok_and(|length| length > 0) {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    format!("http://{address}")
}

const BAZELISK: &str = "echo \"bazelisk got $*\"";

#[test]
fn an_installed_bazelisk_is_used_if_the_registry_answers() {
    let programs = Programs::new().with("bazelisk", BAZELISK);
    let cache = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, cache.path());
    bazel.env("GOREGO_BAZEL_REGISTRY", registry());
    let (output, stderr) = output(bazel.args(["build", "//..."]));
    assert_eq!(output.stdout, b"bazelisk got build //...\n", "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("/bazelisk, since"), "{stderr}");
}

/// Returns the output of the launcher if an installed Bazel of this version is to be used.
fn with_bazel(version: &str) -> String {
    let bazel = format!("[ \"$1\" = --version ] && echo bazel {version} || echo \"ran $*\"");
    let programs = Programs::new().with("bazel", &bazel);
    let cache = TempDir::new().unwrap();
    let mut launcher = script("bazel", &programs, cache.path());
    launcher.env("GOREGO_BAZEL", "installed").arg("info");
    let (output, stderr) = output(&mut launcher);
    String::from_utf8(output.stdout).unwrap() + &stderr
}

#[test]
fn an_installed_bazel_is_used_only_if_it_is_a_release() {
    let stderr = with_bazel("7.7.1");
    assert!(stderr.starts_with("ran info\n"), "{stderr}");
    // The version of Debian's Bazel.
    let stderr = with_bazel("7.7.1; echo");
    assert!(
        stderr.contains("neither Bazelisk nor a released Bazel"),
        "{stderr}"
    );
}

#[test]
fn the_bazel_chosen_by_bazelisk_is_used() {
    let programs = Programs::new().with("real", "echo \"real got $*\"");
    let cache = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, cache.path());
    bazel.env("BAZEL_REAL", programs.0.path().join("real"));
    let (output, stderr) = output(bazel.arg("version"));
    assert_eq!(output.stdout, b"real got version\n", "{stderr}");
    assert_eq!(stderr, "");
}

/// Tests an unreachable registry with an existing root.
#[test]
fn bazel_runs_in_the_root_if_the_registry_is_unreachable() {
    let programs = Programs::new().with("bazelisk", BAZELISK);
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap()).join(".cache"),
        Into::into,
    );
    let elsewhere = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, &cache);
    if let Some(root) = env::var_os("GOREGO_CLIENT_ROOT") {
        bazel.env("GOREGO_CLIENT_ROOT", root);
    }
    // A port that was free a moment ago is closed.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    bazel
        .env("GOREGO_BAZEL_REGISTRY", format!("http://{closed}"))
        .args(["--batch", "--noworkspace_rc"])
        .arg(format!(
            "--output_base={}",
            elsewhere.path().join("out").display()
        ))
        .args(["info", "workspace"])
        .current_dir(project::root());
    let (output, stderr) = output(&mut bazel);
    let workspace = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(Path::new(workspace.trim_end()), project::root(), "{stderr}");
    assert!(
        stderr.contains(&format!("http://{closed} cannot be reached")),
        "{stderr}"
    );
}

#[test]
fn an_error_of_gorego_bazel_names_the_accepted_values() {
    let programs = Programs::new();
    let cache = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, cache.path());
    let (output, stderr) = output(bazel.env("GOREGO_BAZEL", "debian").arg("version"));
    assert!(!output.status.success());
    assert!(
        stderr.contains("accepted are 'installed', 'root' and nothing"),
        "{stderr}"
    );
}

/// Returns the error of creating the root when mmdebstrap fails with these last words.
fn creation_error(last_words: &str) -> String {
    let programs = Programs::new().with("mmdebstrap", &format!("echo '{last_words}' >&2; exit 1"));
    let cache = TempDir::new().unwrap();
    let (output, stderr) = output(script("client-root", &programs, cache.path()).arg("make"));
    assert!(!output.status.success(), "{stderr}");
    let left = fs::read_dir(cache.path().join("gorego-build")).unwrap();
    for entry in left {
        let name = entry.unwrap().file_name();
        assert_ne!(name, "client-root", "an incomplete root");
        assert_ne!(name, "client-root.partial", "a partial root");
    }
    stderr
}

#[test]
fn each_failure_to_create_the_root_has_its_own_remedy() {
    for (last_words, remedy) in [
        (
            "E: Write error - write (28: No space left on device)",
            "no space left",
        ),
        (
            "W: Temporary failure resolving 'deb.debian.org'",
            "no network",
        ),
        ("E: Release file is expired", "set the clock"),
        ("E: 404  Not Found [IP: 127.0.0.1]", "try again later"),
        ("W: GPG error: NO_PUBKEY 0", "debian-archive-keyring"),
        (
            "E: Failed to fetch: Connection reset",
            "what has arrived is kept",
        ),
        // The last error counts.
        (
            "W: Temporary failure resolving\nE: Release file is expired\n",
            "set the clock",
        ),
        ("something new", "something new"),
    ] {
        let stderr = creation_error(last_words);
        assert!(stderr.contains(remedy), "{last_words}: {stderr}");
    }
}

#[test]
fn nothing_is_downloaded_if_the_root_does_not_fit_on_the_disk() {
    let programs = Programs::new()
        .with("mmdebstrap", "exit 3")
        .with("df", "echo Avail; echo 12M");
    let cache = TempDir::new().unwrap();
    let (output, stderr) = output(script("client-root", &programs, cache.path()).arg("make"));
    assert!(!output.status.success());
    assert!(
        stderr.contains("no space: ") && stderr.contains("12 MB left"),
        "{stderr}"
    );
}

#[test]
fn without_root_privileges_and_user_namespaces_the_error_names_the_remedy() {
    let programs = Programs::new()
        .with("unshare", "exit 1")
        .with("id", "echo 1000");
    let cache = TempDir::new().unwrap();
    for command in ["make", "check"] {
        let (output, stderr) = output(script("client-root", &programs, cache.path()).arg(command));
        assert!(!output.status.success());
        assert!(
            stderr.contains("run 'sudo") && stderr.contains("tools/bazel"),
            "{stderr}"
        );
    }
}

#[test]
fn an_existing_root_gets_later_additions_without_being_recreated() {
    let place = TempDir::new().unwrap();
    let rules = place.path().join("debian/usr/share/bazel/rules/rust");
    for (file, content) in [
        (
            "crate_universe/extension.bzl",
            "        cargo_lockfile = CRATES_VENDOR_ATTRS[\"cargo_lockfile\"],\n",
        ),
        (
            "rust/extensions.bzl",
            "_RUST_HOST_TOOLS_TAG = tag_class(\n    attrs = dict(\n    ),\n)\n\
             def _rust_host_tools_impl(module_ctx):\n    rust_toolchain_tools_repository(\n        \
             name = \"rust_host_tools\",\n    )\n",
        ),
    ] {
        let path = rules.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::copy(root::make().join("recipe"), place.path().join("recipe")).unwrap();

    let programs = Programs::new().with("mmdebstrap", "exit 1");
    let make = || {
        let mut make = script("client-root", &programs, place.path());
        let (output, stderr) = output(make.env("GOREGO_CLIENT_ROOT", place.path()).arg("make"));
        assert!(output.status.success(), "{stderr}");
        ["crate_universe/extensions.bzl", "rust/extensions.bzl"]
            .map(|file| fs::read_to_string(rules.join(file)).unwrap())
    };
    let [crates, rust] = make();
    assert!(crates.contains("crate = _crate"), "{crates}");
    assert!(rust.contains("name = name"), "{rust}");

    // As if the update had been interrupted.
    fs::remove_file(place.path().join("amendment")).unwrap();
    assert_eq!(make(), [crates, rust]);
}

#[test]
fn only_one_of_two_processes_creates_the_root() {
    let cache = TempDir::new().unwrap();
    // The process that creates the root reports that, and waits for permission to continue.
    let [arrived, resume] = ["arrived", "go-on"].map(|name| cache.path().join(name));
    let mut mkfifo = process::command("mkfifo");
    assert!(mkfifo.args([&arrived, &resume]).status().unwrap().success());
    let programs = Programs::new().with(
        "mmdebstrap",
        "echo >\"$XDG_CACHE_HOME/arrived\"; cat \"$XDG_CACHE_HOME/go-on\"; exit 1",
    );
    let make = || {
        let mut command = script("client-root", &programs, cache.path());
        Process::spawn(command.arg("make").stderr(Stdio::piped()))
    };

    let mut first = make();
    fs::read(&arrived).unwrap();
    let mut second = make();
    let mut stderr = BufReader::new(second.child_mut().stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for another process"), "{line}");

    // The second process starts when the first ends.
    fs::write(&resume, "").unwrap();
    first.wait();
    fs::read(&arrived).unwrap();
    fs::write(&resume, "").unwrap();
    second.wait();
}

/// Returns the output of a shell inside or outside the root.
fn shell_output(inside: bool, dir: &Path) -> Vec<u8> {
    let script = "pwd; id -un; echo \"$HOME\"; ls -d \"$HOME\"; cat file; exit 3";
    let mut command = if inside {
        let mut command = process::command(project::root().join("tools/client-root"));
        command.args(["run", "--", "sh"]);
        command
    } else {
        process::command("sh")
    };
    let output = command.args(["-c", script]).current_dir(dir).output();
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    output.stdout
}

#[test]
fn home_user_and_paths_in_the_root_are_those_outside() {
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("file"), "here").unwrap();
    assert_eq!(
        String::from_utf8_lossy(&shell_output(true, elsewhere.path())),
        String::from_utf8_lossy(&shell_output(false, elsewhere.path()))
    );
}

/// A process in the root, such as Bazel's server, keeps seeing files that the machine replaces. The test
/// replaces a file in a copy of /etc.
#[test]
fn the_root_can_be_entered_from_inside_after_the_machine_has_replaced_a_file() {
    root::make();
    let script = r#"
        set -e
        # Not all of it may be readable.
        cp -a /etc "$DIR/etc" 2>/dev/null || true
        mount --bind "$DIR/etc" /etc
        exec "$CLIENT_ROOT" run -- sh -c '
            set -e
            cp "$DIR/etc/passwd" "$DIR/etc/passwd.new"
            echo "added:x:4711:4711::/:/bin/sh" >>"$DIR/etc/passwd.new"
            mv "$DIR/etc/passwd.new" "$DIR/etc/passwd"
            "$CLIENT_ROOT" run -- sh -c "\"\$CLIENT_ROOT\" run -- id -un"
        '
    "#;
    let dir = TempDir::new().unwrap();
    let mut machine = process::command("unshare");
    machine.arg("--mount");
    if fs::metadata(dir.path()).unwrap().uid() != 0 {
        machine.args(["--user", "--map-root-user"]);
    }
    machine
        .args(["sh", "-c", script])
        .env("CLIENT_ROOT", project::root().join("tools/client-root"))
        .env("DIR", dir.path())
        .stdin(Stdio::null());
    let (output, stderr) = output(&mut machine);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "root\n",
        "{stderr}"
    );
}
