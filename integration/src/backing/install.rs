//! Builds bazel-remote, once for each user, from the release in `peers/go.mod` with the checksums in
//! `go.sum`.

use std::{
    env, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::{
    content::hash_of,
    lock::Lock,
    process::{self, Process, describe},
    project,
};

const PROGRAM: &str = "bazel-remote";
const MODULE: &str = "github.com/buchgr/bazel-remote/v2";

/// Lists the variables that would change settings of bazel-remote.
pub(super) fn settings_of_bazel_remote() -> impl Iterator<Item = std::ffi::OsString> {
    let names = env::vars_os().map(|(name, _)| name);
    names.filter(|name| name.as_encoded_bytes().starts_with(b"BAZEL_REMOTE_"))
}

/// Returns the program, and builds it first if necessary.
pub(super) fn bazel_remote() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let source = project::root().join("integration/peers");
        let program = cache_dir().join(recipe(&source)).join(PROGRAM);
        if !program.exists() {
            let _lock = Lock::take("peers");
            // Another process may have built it meanwhile.
            if !program.exists() {
                build(&source, &program);
            }
        }
        program
    })
}

/// Returns the directory in which the program is kept between runs.
fn cache_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(set("HOME").expect("HOME is set")).join(".cache"),
        PathBuf::from,
    );
    cache.join("gorego-build/peers")
}

/// Returns a hash of the release and the modules that the program is built from.
fn recipe(source: &Path) -> String {
    let open = |name| {
        let path = source.join(name);
        fs::File::open(&path).unwrap_or_else(|e| panic!("opening {}: {e}", path.display()))
    };
    let hash = hash_of(open("go.mod").chain(open("go.sum")));
    let hash = hash.expect("reading go.mod and go.sum");
    format!("{PROGRAM}-{}", &hash[..16])
}

fn build(source: &Path, program: &Path) {
    require_go();
    let dir = program.parent().expect("a program is in a folder");
    fs::create_dir_all(dir).unwrap_or_else(|e| panic!("making {}: {e}", dir.display()));
    // In the same folder, so that the complete program can be renamed into place.
    let partial = TempDir::new_in(dir).unwrap_or_else(|e| panic!("in {}: {e}", dir.display()));
    let built = partial.path().join(PROGRAM);
    let mut go = process::command("go");
    go.arg("build")
        .arg("-C")
        .arg(source)
        .args(["-mod=readonly", "-trimpath", "-o"])
        .args([built.as_os_str(), MODULE.as_ref()])
        .stdin(Stdio::null());
    eprintln!("building {MODULE} (a few minutes, once)");
    let status = Process::spawn(&mut go).wait();
    assert!(status.success(), "{go:?}: {}", describe(status));
    fs::rename(&built, program).unwrap_or_else(|e| panic!("making {}: {e}", program.display()));
}

fn require_go() {
    match Command::new("go").arg("version").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("go version: {}", describe(output.status)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            panic!("Go is not installed: {MODULE} cannot be built, which this test compares with")
        }
        Err(e) => panic!("starting go: {e}"),
    }
}
