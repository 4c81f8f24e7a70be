//! Calls of `gorego shell`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use reapi::v2::Digest;
use tempfile::TempDir;

use crate::{binary, executor::names_in, process, server, terminal::Terminal};

/// The status of a call that started no program.
const FAILED: i32 = 125;

/// A caller of `gorego shell`, with a folder for temporary files of its own.
#[derive(Debug)]
pub struct Caller {
    url: String,
    tmp: TempDir,
}

impl Caller {
    /// Creates a caller that uses the cache at `url`.
    pub fn new(url: &str) -> Self {
        let tmp = TempDir::new().expect("a temporary directory");
        // The user of an action that is not isolated has to reach its folder.
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(tmp.path(), mode).expect("an own directory");
        let url = url.to_owned();
        Self { url, tmp }
    }

    /// Returns the folder for temporary files.
    pub fn tmp(&self) -> &Path {
        self.tmp.path()
    }

    /// Returns the command for an action.
    pub fn command(&self, action: &str, options: &[&str]) -> Command {
        let mut command = process::command(binary::gorego());
        server::forget_settings(&mut command);
        command.args(["shell", action, "--server", &self.url]);
        command.args(options).stdin(Stdio::null()).current_dir("/");
        command.env("TMPDIR", self.tmp()).env("SHELL", "/bin/sh");
        command
    }

    /// Runs the command to its end. Returns its status, and what it prints.
    pub fn run(&self, action: &str, options: &[&str]) -> (i32, String, String) {
        let output = self.command(action, options).output();
        let Output {
            status,
            stdout,
            stderr,
        } = output.expect("gorego starts");
        let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
        let code = status.code().expect("an exit code");
        (code, text(stdout), text(stderr))
    }

    /// Runs a command that fails before it starts a program. Returns what it prints.
    pub fn refusal(&self, action: &str, options: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(action, options);
        assert_eq!((code, &*stdout), (FAILED, ""), "{stderr}");
        self.has_no_files();
        stderr
    }

    /// Starts the command in a terminal.
    pub fn terminal(&self, action: &str, options: &[&str]) -> Terminal {
        Terminal::start(&self.command(action, options), 120, 40)
    }

    /// Checks that nothing is left in the folder for temporary files.
    pub fn has_no_files(&self) {
        let left = names_in(self.tmp());
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Returns a digest as the command takes it.
pub fn name(digest: &Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}
