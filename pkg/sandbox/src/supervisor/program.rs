//! Another program as the sandbox of a command, with the interface of Bazel's `linux-sandbox`.

use std::{
    ffi::{CString, NulError},
    fs,
    os::{fd::AsRawFd as _, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::command::Command;
use crate::{Isolation, wire::Refusal};

/// The folders for temporary files.
const TMP: &str = "/tmp";
const SHM: &str = "/dev/shm";

/// The time by which the program waits longer than the supervisor, which is to kill everything first.
const AHEAD: Duration = Duration::from_secs(2);

/// Returns the program and the arguments that come before those of the command. The working directory is that of the
/// process; standard output and error, the timeout and killing stay with the supervisor.
pub(super) fn arguments(
    command: &Command,
    isolation: &Isolation,
    program: &Path,
) -> Result<Vec<CString>, Refusal> {
    let failed = Refusal::at::<std::io::Error>("paths of the isolation");
    let root = fs::read_link(format!("/proc/self/fd/{}", command.root.as_raw_fd()));
    let root = root.map_err(&failed)?;
    let tmp = fs::canonicalize(&isolation.tmp).map_err(&failed)?;
    let writable = isolation.writable.iter().map(fs::canonicalize);
    let writable = writable.collect::<Result<Vec<_>, _>>().map_err(&failed)?;
    // Without this delay, the program would kill the command at once.
    let kill_delay = command.order.kill_delay.saturating_add(AHEAD).as_secs();
    let kill_delay = kill_delay.min(i32::MAX.unsigned_abs().into()).to_string();
    let mut all = vec![program.to_owned()];
    let mut add = |option: &str, value: PathBuf| all.extend([option.into(), value]);
    // Mounts come first, then what is writable. A build root below /tmp would be hidden by another /tmp, and a writable
    // /tmp would let the command change the directories of others.
    let own_tmp = (!root.starts_with(TMP)).then(|| PathBuf::from(TMP));
    if let Some(at) = &own_tmp {
        add("-M", tmp.clone());
        add("-m", at.clone());
    }
    if Path::new(SHM).is_dir() {
        add("-e", SHM.into());
    }
    for path in [root, tmp].into_iter().chain(own_tmp).chain(writable) {
        add("-w", path);
    }
    add("-t", kill_delay.into());
    all.push("-H".into());
    all.extend((!isolation.network).then(|| "-N".into()));
    all.push("--".into());
    let all = all
        .into_iter()
        .map(|argument| CString::new(argument.into_os_string().into_vec()));
    all.collect::<Result<_, _>>()
        .map_err(Refusal::at::<NulError>("path of the isolation"))
}
