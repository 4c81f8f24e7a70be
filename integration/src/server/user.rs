//! The users that servers run as.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
};

use rustix::process::geteuid;

use crate::{binary, process};

/// The ordinary user that servers run as, where tests run as root.
const ORDINARY: u32 = 65534;

/// The user that a server runs as.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum User {
    /// That of the test.
    #[default]
    Own,
    /// An ordinary user.
    Ordinary,
    /// An ordinary user who can create no namespaces.
    Confined,
    /// An ordinary user who can create namespaces, but not for mounts.
    Mountless,
}

/// Runs a program as an ordinary user, in a namespace where the limit that the first argument names is set to the
/// second argument.
const CONFINE: &str = "echo $2 >/proc/sys/user/$1 && shift 2 \
    && exec unshare --user --map-user=1000 --map-group=1000 -- \"$@\"";

impl User {
    /// Returns the users that this test can have: an ordinary one, and root.
    pub fn all() -> Vec<Self> {
        if !geteuid().is_root() {
            return vec![Self::Own];
        }
        // A container may have no other users.
        let ids = ["61184", &ORDINARY.to_string()].map(|id| format!("--reuid={id}"));
        let mut has_ids = ids.iter().map(|id| {
            let mut setpriv = Command::new("setpriv");
            let status = setpriv.args([id, "--clear-groups", "true"]).status();
            status.expect("setpriv starts").success()
        });
        if has_ids.all(|has_id| has_id) {
            vec![Self::Own, Self::Ordinary]
        } else {
            Vec::new()
        }
    }

    /// Returns whether this test can have a confined user.
    pub fn can_confine() -> bool {
        let mut confine = Self::Confined.confine();
        confine.arg("true");
        confine.status().expect("unshare starts").success()
    }

    /// Returns a command that confines the program in its next arguments.
    fn confine(self) -> Command {
        let mut command = process::command("unshare");
        command.args(["--user", "--map-root-user", "--", "sh", "-c", CONFINE, "sh"]);
        command.args(match self {
            Self::Mountless => ["max_mnt_namespaces", "0"],
            // The one that it runs in.
            _ => ["max_user_namespaces", "1"],
        });
        command
    }

    /// Gives the user a file or directory.
    pub fn give(self, path: &Path) {
        if self.is_other() {
            chown(path, Some(ORDINARY), Some(ORDINARY)).expect("root gives files");
        }
    }

    fn is_other(self) -> bool {
        self == Self::Ordinary && geteuid().is_root()
    }

    /// Returns the command of a server with a directory `dir`, which holds its data directory `data`.
    pub(super) fn program(self, dir: &Path, data: &Path) -> Command {
        if [Self::Confined, Self::Mountless].contains(&self) {
            let mut command = self.confine();
            command.arg(binary::gorego());
            return command;
        }
        if !self.is_other() {
            return process::command(binary::gorego());
        }
        fs::create_dir_all(data).expect("a data directory");
        self.give(data);
        let program = dir.join("gorego");
        if !program.exists() {
            // By another process: one that forks meanwhile would keep the copy open for writing.
            let copied = Command::new("cp")
                .arg(binary::gorego())
                .arg(&program)
                .status();
            assert!(copied.expect("cp starts").success());
            let mode = Permissions::from_mode(0o755);
            fs::set_permissions(&program, mode).expect("the mode of a copy changes");
        }
        let mut command = Command::new("setpriv");
        let id = ORDINARY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }
}
