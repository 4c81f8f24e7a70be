//! Landlock, which keeps a command without a root of its own from changing the files that it sees.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, Scope, path_beneath_rules,
};

/// The first version that permits moving files between directories, as commands do (Linux 5.19).
const LEAST: ABI = ABI::V2;

/// The devices that programs expect.
const DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// Returns whether the kernel can keep commands from changing files.
pub fn has_landlock() -> bool {
    ruleset().is_ok()
}

/// A confinement of commands that are started later.
pub(crate) struct Confinement(RulesetCreated);

impl Confinement {
    /// Creates the confinement to `paths` and what is below them. Those that do not exist are ignored.
    pub(crate) fn to(paths: &[PathBuf]) -> io::Result<Self> {
        let access = AccessFs::from_write(LEAST) | AccessFs::Truncate;
        let rules = || ruleset()?.add_rules(path_beneath_rules(paths, access));
        rules().map(Self).map_err(io::Error::other)
    }

    /// Keeps this process and its future children from changing files elsewhere, from gaining privileges by the
    /// programs that they execute, and, from Linux 6.12 on, from sending signals to other processes. Before Linux 6.2,
    /// they can still truncate files.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let entered = self.0.try_clone()?.restrict_self();
        entered.map(drop).map_err(io::Error::other)
    }
}

/// Creates a ruleset that forbids all changes.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_write(LEAST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::Truncate)?
        .scope(Scope::Signal)?
        .create()
}

/// Returns the paths that every program expects to be writable: `/proc`, devices, and the folders for temporary files
/// that contain no `protected` path.
pub fn common_paths(protected: &[PathBuf]) -> Vec<PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let is_open = |folder: &str| {
        let folder = Path::new(folder);
        let holds = |path: &Path| path.starts_with(folder) || path.starts_with(real(folder));
        !protected
            .iter()
            .any(|path| holds(path) || holds(&real(path)))
    };
    let temporary = ["/tmp", "/var/tmp"]
        .into_iter()
        .filter(|folder| is_open(folder));
    // Of `/dev`, `/dev/shm` can hold files.
    let devices = if is_open("/dev") {
        &["/dev"]
    } else {
        &DEVICES[..]
    };
    let all = temporary.chain(devices.iter().copied()).chain(["/proc"]);
    all.map(PathBuf::from).collect()
}
