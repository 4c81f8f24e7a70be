//! The root directory with the real build clients.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{process, project};

/// Returns a command that runs inside the root, in the directory `inside`. Creates the root first if
/// necessary.
///
/// The command sees the machine's network and files, except the system folders. Processes that it leaves
/// running end with it.
pub fn command(inside: &Path, program: &str) -> Command {
    make();
    let mut command = process::command(script());
    command
        .args(["run", "--contained", "--", program])
        // Without `/usr/local`, which is the machine's.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir(inside)
        .stdin(Stdio::null());
    command
}

/// Creates the root if necessary, and returns its path.
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
            "cannot create the root with the build clients: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        let place = String::from_utf8(output.stdout).expect("the root's path is UTF-8");
        PathBuf::from(place.trim_end())
    })
}

fn script() -> PathBuf {
    project::root().join("tools/client-root")
}
