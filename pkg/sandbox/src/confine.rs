//! Landlock, which keeps a command without a root of its own from changing the files that it sees.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, Scope, path_beneath_rules,
};

/// The first version that permits to move files between directories, as commands do (Linux 5.19).
const LEAST: ABI = ABI::V2;

/// Whether the kernel can keep commands from changing files.
pub fn can_confine() -> bool {
    ruleset().is_ok()
}

/// Keeps this process and its future children from changing files elsewhere than at `paths` and below, from gaining
/// privileges by the programs that they execute, and, from Linux 6.12 on, from sending signals to other processes.
/// Before Linux 6.2, they can still truncate files. Paths that do not exist are ignored.
pub(crate) fn confine<'a>(paths: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    let access = AccessFs::from_write(LEAST) | AccessFs::Truncate;
    let confined = || {
        ruleset()?
            .add_rules(path_beneath_rules(paths, access))?
            .restrict_self()
    };
    confined().map(drop).map_err(io::Error::other)
}

/// Returns rules by which nothing may be changed.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_write(LEAST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::Truncate)?
        .scope(Scope::Signal)?
        .create()
}

/// Returns those of the folders in which every program expects to write that hold none of `protected`.
pub fn common_folders(protected: &[PathBuf]) -> Vec<PathBuf> {
    let real = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let protected: Vec<_> = protected.iter().map(real).collect();
    let is_open = |folder: &PathBuf| {
        let folder = real(folder);
        !protected.iter().any(|path| path.starts_with(&folder))
    };
    let folders = ["/tmp", "/var/tmp", "/dev", "/proc"].map(PathBuf::from);
    folders.into_iter().filter(is_open).collect()
}
