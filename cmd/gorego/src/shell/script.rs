//! Commands as text for a shell.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::Path,
};

use std::io::Write as _;

pub(super) use gorego_execution::{quote, render};

/// Writes a script that its user may change. The file must not exist.
pub(super) fn write(path: &Path, script: &str, user: Option<u32>) -> io::Result<()> {
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(path)?;
    file.write_all(script.as_bytes())?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    fchown(&file, user, user)
}
