//! The root directory that holds the real build clients.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{process, project};

/// A command that will run inside the root, in the directory `inside`; the root is made first if
/// this machine has none.
///
/// It sees the machine's files and network, but for the system's own folders, and whatever it leaves
/// running ends with it.
pub fn command(inside: &Path, program: &str) -> Command {
    make();
    let mut command = process::command(script());
    command
        .args(["run", "--contained", "--", program])
        // Not what somebody has put beside the root's programs.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir(inside)
        .stdin(Stdio::null());
    command
}

/// Makes the root if this machine has none, and returns its place.
pub fn make() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let output = Command::new(script())
            .arg("make")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("starting {}: {e}", script().display()));
        assert!(
            output.status.success(),
            "the root with the build clients cannot be made: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        let place = String::from_utf8(output.stdout).expect("the root's path is UTF-8");
        PathBuf::from(place.trim_end())
    })
}

fn script() -> PathBuf {
    project::root().join("tools/client-root")
}
