//! The root directory that holds the real build clients.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::process;

/// A command that will run inside the root, in the directory `inside`; the root is made first if
/// this machine has none.
///
/// It sees the host's network, and of the host's files those below `shared`, under the same path.
pub fn command(shared: &Path, inside: &Path, program: &str) -> Command {
    make();
    let mut command = process::command(script());
    command.arg("run").arg("--bind").arg(shared);
    command.arg("--chdir").arg(inside).arg("--").arg(program);
    command.stdin(Stdio::null());
    command
}

fn make() {
    static MADE: OnceLock<()> = OnceLock::new();
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
    });
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/client-root")
}
