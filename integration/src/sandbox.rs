//! Programs with the interface of Bazel's `linux-sandbox`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// A program that takes the options of a sandbox, and runs the command without one. The command sees its path.
const SCRIPT: &str = "#!/bin/sh
export SANDBOX=$0
until [ \"$1\" = -- ]; do shift; done
shift
exec \"$@\"
";

/// Writes a program into `dir` that runs commands as a sandbox does, without isolating them. Every user can reach it.
/// Returns its path.
pub fn without_effect(dir: &Path) -> PathBuf {
    let program = dir.join("sandbox");
    fs::write(&program, SCRIPT).expect("an own directory");
    for path in [dir, &program] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("an own directory");
    }
    program
}
