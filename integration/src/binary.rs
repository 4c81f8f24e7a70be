//! Finds or builds the server's program.

use std::{
    env,
    ffi::OsString,
    path::{self, Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::lock::Lock;

/// Returns the program under test: `GOREGO_BIN`, as Bazel sets it, else `gorego` of the profile of this
/// test, built by Cargo.
pub fn gorego() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        env::var_os("GOREGO_BIN").map_or_else(build, |given| {
            // The server starts in another directory.
            path::absolute(&given).unwrap_or_else(|e| panic!("GOREGO_BIN={}: {e}", given.display()))
        })
    })
}

/// Returns the folder of the profile's programs, above the `deps` of this test binary.
fn profile_dir() -> PathBuf {
    let test = env::current_exe().expect("a test binary knows its path");
    let mut above = test.ancestors().skip(1);
    let dir = above
        .find(|dir| !dir.ends_with("deps"))
        .unwrap_or_else(|| panic!("{} is not in a target directory", test.display()));
    dir.to_owned()
}

fn build() -> PathBuf {
    let profile_dir = profile_dir();
    let _lock = Lock::take("build");
    let profile = match profile_dir.file_name() {
        Some(name) if name == "debug" => OsString::from("dev"),
        Some(name) => name.to_owned(),
        None => panic!("{} is not a profile's directory", profile_dir.display()),
    };
    let target_dir = profile_dir
        .parent()
        .expect("a profile's directory is in a target directory");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(&cargo)
        .args(["build", "--quiet", "--package", "gorego", "--bin", "gorego"])
        .arg("--profile")
        .arg(profile)
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap_or_else(|e| panic!("starting {}: {e}", cargo.display()));
    assert!(status.success(), "cargo build of gorego failed: {status}");
    profile_dir.join("gorego")
}
