//! Programs with the interface of Bazel's `linux-sandbox`, and the sandbox that the kernel has.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use landlock::{ABI, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _};

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

/// Returns whether the kernel has Landlock with all that gorego needs.
pub fn has_landlock() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let rules = rules.handle_access(AccessFs::from_write(ABI::V2));
    rules.and_then(Ruleset::create).is_ok()
}
