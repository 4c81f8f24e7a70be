//! `tools/bazel` finds a Bazel that works here, and both it and the root that it may need say why when
//! there is none.
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

/// Programs that stand in for those of the machine.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// One that is a script of the shell.
    fn with(self, name: &str, script: &str) -> Self {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// The search path, with the system's programs behind these.
    fn path(&self) -> OsString {
        let mut path = self.0.path().as_os_str().to_owned();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        path
    }
}

/// A script of the project, with a cache directory of its own.
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
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// A central registry of modules that answers one request; its address.
fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        // Where there is no curl, nothing but the connection is tried.
        if connection.read(&mut request).is_ok_and(|length| length > 0) {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    format!("http://{address}")
}

const BAZELISK: &str = "echo \"bazelisk got $*\"";

#[test]
fn an_installed_bazelisk_is_used_where_the_registry_answers() {
    let programs = Programs::new().with("bazelisk", BAZELISK);
    let cache = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, cache.path());
    bazel.env("GOREGO_BAZEL_REGISTRY", registry());
    let (output, said) = output(bazel.args(["build", "//..."]));
    assert_eq!(output.stdout, b"bazelisk got build //...\n", "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("/bazelisk, since"), "{said}");
}

/// What the launcher says when it is to use what is installed, which is a Bazel of that version.
fn with_bazel(version: &str) -> String {
    let bazel = format!("[ \"$1\" = --version ] && echo bazel {version} || echo \"ran $*\"");
    let programs = Programs::new().with("bazel", &bazel);
    let cache = TempDir::new().unwrap();
    let mut launcher = script("bazel", &programs, cache.path());
    launcher.env("GOREGO_BAZEL", "installed").arg("info");
    let (output, said) = output(&mut launcher);
    String::from_utf8(output.stdout).unwrap() + &said
}

#[test]
fn of_what_is_called_bazel_only_a_release_is_used() {
    let said = with_bazel("7.7.1");
    assert!(said.starts_with("ran info\n"), "{said}");
    // As Debian's says.
    let said = with_bazel("7.7.1; echo");
    assert!(
        said.contains("neither Bazelisk nor a released Bazel"),
        "{said}"
    );
}

#[test]
fn what_bazelisk_has_chosen_is_used() {
    let programs = Programs::new().with("real", "echo \"real got $*\"");
    let cache = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, cache.path());
    bazel.env("BAZEL_REAL", programs.0.path().join("real"));
    let (output, said) = output(bazel.arg("version"));
    assert_eq!(output.stdout, b"real got version\n", "{said}");
    assert_eq!(said, "");
}

/// With the registry out of reach, and a root that is there already.
#[test]
fn without_the_registry_bazel_runs_in_the_root_as_it_would_outside() {
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
    // Nobody listens at a port that was free a moment ago.
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
    let (output, said) = output(&mut bazel);
    let workspace = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(Path::new(workspace.trim_end()), project::root(), "{said}");
    assert!(
        said.contains(&format!("http://{closed} cannot be reached")),
        "{said}"
    );
}

#[test]
fn a_wrong_choice_is_told_what_would_be_right() {
    let programs = Programs::new();
    let cache = TempDir::new().unwrap();
    let mut bazel = script("bazel", &programs, cache.path());
    let (output, said) = output(bazel.env("GOREGO_BAZEL", "debian").arg("version"));
    assert!(!output.status.success());
    assert!(
        said.contains("accepted are 'installed', 'root' and nothing"),
        "{said}"
    );
}

/// What making the root says when mmdebstrap fails with those last words.
fn making_fails(last_words: &str) -> String {
    let programs = Programs::new().with("mmdebstrap", &format!("echo '{last_words}' >&2; exit 1"));
    let cache = TempDir::new().unwrap();
    let (output, said) = output(script("client-root", &programs, cache.path()).arg("make"));
    assert!(!output.status.success(), "{said}");
    let left = fs::read_dir(cache.path().join("gorego-build")).unwrap();
    for entry in left {
        let name = entry.unwrap().file_name();
        assert_ne!(name, "client-root", "a root that is not whole");
        assert_ne!(name, "client-root.partial", "half a root");
    }
    said
}

#[test]
fn each_way_of_failing_to_make_the_root_is_told_from_the_others() {
    for (last_words, told) in [
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
        // Tried again, and then something else went wrong.
        (
            "W: Temporary failure resolving\nE: Release file is expired\n",
            "set the clock",
        ),
        ("something new", "something new"),
    ] {
        let said = making_fails(last_words);
        assert!(said.contains(told), "{last_words}: {said}");
    }
}

#[test]
fn without_room_for_the_root_nothing_is_fetched() {
    let programs = Programs::new()
        .with("mmdebstrap", "exit 3")
        .with("df", "echo Avail; echo 12M");
    let cache = TempDir::new().unwrap();
    let (output, said) = output(script("client-root", &programs, cache.path()).arg("make"));
    assert!(!output.status.success());
    assert!(
        said.contains("no space: ") && said.contains("12 MB left"),
        "{said}"
    );
}

#[test]
fn without_root_privileges_and_user_namespaces_it_is_told_how_to_get_in() {
    let programs = Programs::new()
        .with("unshare", "exit 1")
        .with("id", "echo 1000");
    let cache = TempDir::new().unwrap();
    for command in ["make", "check"] {
        let (output, said) = output(script("client-root", &programs, cache.path()).arg(command));
        assert!(!output.status.success());
        assert!(
            said.contains("run 'sudo") && said.contains("tools/bazel"),
            "{said}"
        );
    }
}

#[test]
fn a_root_made_before_gets_what_was_added_since_without_being_made_again() {
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
        let (output, said) = output(make.env("GOREGO_CLIENT_ROOT", place.path()).arg("make"));
        assert!(output.status.success(), "{said}");
        ["crate_universe/extensions.bzl", "rust/extensions.bzl"]
            .map(|file| fs::read_to_string(rules.join(file)).unwrap())
    };
    let [crates, rust] = make();
    assert!(crates.contains("crate = _crate"), "{crates}");
    assert!(rust.contains("name = name"), "{rust}");

    // As if it had ended half-way.
    fs::remove_file(place.path().join("amendment")).unwrap();
    assert_eq!(make(), [crates, rust]);
}

#[test]
fn only_one_of_two_makes_the_root() {
    let cache = TempDir::new().unwrap();
    // Whoever makes the root says so, and then waits to be let on.
    let [arrived, go_on] = ["arrived", "go-on"].map(|name| cache.path().join(name));
    let mut mkfifo = process::command("mkfifo");
    assert!(mkfifo.args([&arrived, &go_on]).status().unwrap().success());
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
    let mut said = BufReader::new(second.child_mut().stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for another process"), "{line}");

    // The second comes in when the first is out.
    fs::write(&go_on, "").unwrap();
    first.wait();
    fs::read(&arrived).unwrap();
    fs::write(&go_on, "").unwrap();
    second.wait();
}

/// What a shell says inside the root, or without one.
fn said_by_shell(inside: bool, dir: &Path) -> Vec<u8> {
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
fn in_the_root_home_user_and_paths_are_those_outside() {
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("file"), "here").unwrap();
    assert_eq!(
        String::from_utf8_lossy(&said_by_shell(true, elsewhere.path())),
        String::from_utf8_lossy(&said_by_shell(false, elsewhere.path()))
    );
}

/// Files of the machine stay as they were for a process in the root, such as Bazel's server. The
/// machine here is one whose /etc is a copy.
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
    let (output, said) = output(&mut machine);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "root\n", "{said}");
}
