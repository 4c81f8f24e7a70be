//! Programs of others that the root directory lacks, installed once for each user: built with Go from the releases in
//! `peers/go.mod` with the checksums in `go.sum`, or unpacked from Debian's development release.

use std::{
    env,
    ffi::OsStr,
    fs,
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

/// Returns bazel-remote, a cache. Builds it first if necessary.
pub(crate) fn bazel_remote() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| with_go("bazel-remote", "github.com/buchgr/bazel-remote/v2"))
}

/// Returns remotetool, a client of executors. Builds it first if necessary.
pub fn remotetool() -> &'static Path {
    const PACKAGE: &str = "github.com/bazelbuild/remote-apis-sdks/go/cmd/remotetool";
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| with_go("remotetool", PACKAGE))
}

/// Returns toxiproxy, a forwarder. Builds it first if necessary.
pub(crate) fn toxiproxy() -> &'static Path {
    const PACKAGE: &str = "github.com/Shopify/toxiproxy/v2/cmd/server";
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| with_go("toxiproxy", PACKAGE))
}

/// Returns siso, a build tool, which needs the libraries of the root directory. Unpacks it first if necessary.
pub fn siso() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // No other release has the package.
        let dir = installed("siso-1", |dir| unpack("sid", "siso", "./usr/bin/siso", dir));
        dir.join("usr/bin/siso")
    })
}

/// Returns a command that runs dnsmasq, a DNS server, with the libraries of its release. Unpacks it first if
/// necessary.
pub(crate) fn dnsmasq() -> Command {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    let dir = INSTALLED.get_or_init(|| {
        installed("dnsmasq-1", |dir| {
            unpack("forky", "dnsmasq-base", "./usr", dir);
        })
    });
    let libraries = dir.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
    let mut files = fs::read_dir(&libraries).expect("the libraries are unpacked");
    let loader = files.find_map(|file| {
        let path = file.expect("a readable directory").path();
        let name = path.file_name().and_then(OsStr::to_str);
        let is_loader = name.is_some_and(|name| name.starts_with("ld-linux"));
        is_loader.then_some(path)
    });
    let mut command = process::command(loader.expect("the loader is unpacked"));
    command.arg("--library-path").arg(&libraries);
    command.arg(dir.join("usr/sbin/dnsmasq"));
    command
}

/// Unpacks the files in `part` of a package and of those that it needs.
fn unpack(release: &str, package: &str, part: &str, dir: &Path) {
    // The index may be an old copy.
    const UNPACK: &str = "mmdebstrap --variant=extract --include=\"$1\" --quiet \
        --aptopt='Acquire::Check-Valid-Until \"false\"' \"$0\" - | tar -x -C \"$3\" \"$2\"";
    let mut unpack = process::command("bash");
    unpack.args(["-o", "pipefail", "-c", UNPACK, release, package, part]);
    run(unpack.arg(dir).stdin(Stdio::null()));
}

/// Lists the variables that would change settings of bazel-remote.
pub(crate) fn settings_of_bazel_remote() -> impl Iterator<Item = std::ffi::OsString> {
    let names = env::vars_os().map(|(name, _)| name);
    names.filter(|name| name.as_encoded_bytes().starts_with(b"BAZEL_REMOTE_"))
}

/// Returns a program, and builds it first if necessary.
fn with_go(program: &str, package: &str) -> PathBuf {
    let source = project::root().join("integration/peers");
    let recipe = format!("{program}-{}", recipe(&source));
    let dir = installed(&recipe, |dir| {
        require_go(package);
        let mut go = process::command("go");
        go.arg("build")
            .arg("-C")
            .arg(&source)
            .args(["-mod=readonly", "-trimpath", "-o"])
            .arg(dir.join(program))
            .arg(package)
            .stdin(Stdio::null());
        eprintln!("building {package} (a few minutes, once)");
        run(&mut go);
    });
    dir.join(program)
}

/// Returns the directory of that name, which is kept between runs. If it does not exist yet, `fill` fills it.
fn installed(name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let cache = cache_dir();
    let dir = cache.join(name);
    if !dir.exists() {
        let _lock = Lock::take("peers");
        // Another process may have installed it meanwhile.
        if !dir.exists() {
            fs::create_dir_all(&cache)
                .unwrap_or_else(|e| panic!("making {}: {e}", cache.display()));
            // In the same folder, so that the complete directory can be renamed into place.
            let partial = TempDir::new_in(&cache);
            let partial = partial.unwrap_or_else(|e| panic!("in {}: {e}", cache.display()));
            let complete = partial.path().join(name);
            fs::create_dir(&complete).expect("a new directory");
            fill(&complete);
            fs::rename(&complete, &dir).unwrap_or_else(|e| panic!("making {}: {e}", dir.display()));
        }
    }
    dir
}

/// Returns the directory in which the programs are kept between runs.
fn cache_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(set("HOME").expect("HOME is set")).join(".cache"),
        PathBuf::from,
    );
    cache.join("gorego-build/peers")
}

/// Returns a hash of the releases and the modules that the programs are built from.
fn recipe(source: &Path) -> String {
    let open = |name| {
        let path = source.join(name);
        fs::File::open(&path).unwrap_or_else(|e| panic!("opening {}: {e}", path.display()))
    };
    let hash = hash_of(open("go.mod").chain(open("go.sum")));
    let hash = hash.expect("reading go.mod and go.sum");
    hash[..16].to_owned()
}

fn run(command: &mut Command) {
    let status = Process::spawn(command).wait();
    assert!(status.success(), "{command:?}: {}", describe(status));
}

fn require_go(package: &str) {
    match Command::new("go").arg("version").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("go version: {}", describe(output.status)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            panic!("Go is not installed: {package} cannot be built, which this test uses")
        }
        Err(e) => panic!("starting go: {e}"),
    }
}
