//! The project's files, for tests of its build.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Returns the checkout that this program was built from. Under Bazel the working directory is another:
/// `bazel run` passes the checkout in a variable, and tests run among links to its files.
pub fn root() -> PathBuf {
    let below = if let Some(checkout) = env::var_os("BUILD_WORKSPACE_DIRECTORY") {
        Path::new(&checkout).join("Cargo.toml")
    } else if let Some(runfiles) = env::var_os("TEST_SRCDIR") {
        let workspace = env::var_os("TEST_WORKSPACE").expect("Bazel names the workspace");
        Path::new(&runfiles).join(workspace).join("Cargo.toml")
    } else {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")
    };
    let manifest = fs::canonicalize(&below)
        .unwrap_or_else(|e| panic!("{}: {e}; is it in the test's data?", below.display()));
    manifest.parent().expect("a file is in a folder").to_owned()
}

/// Lists the files that a commit of everything would contain, relative to the checkout.
pub fn files() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(["--cached", "--others", "--exclude-standard"])
        .current_dir(root());
    let output = git.output().expect("git runs");
    assert!(
        output.status.success(),
        "{git:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).expect("names in UTF-8");
    let files: Vec<_> = names
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|file| root().join(file).exists())
        .collect();
    assert!(
        !files.is_empty(),
        "git knows no file in {}",
        root().display()
    );
    files
}

/// Copies the files to `to`.
pub fn copy(to: &Path) {
    let from = root();
    for file in files() {
        let copy = to.join(&file);
        let dir = copy.parent().expect("a file is in a folder");
        fs::create_dir_all(dir).unwrap_or_else(|e| panic!("making {}: {e}", dir.display()));
        fs::copy(from.join(&file), &copy)
            .unwrap_or_else(|e| panic!("copying {}: {e}", file.display()));
    }
}
