//! Creates, lists and removes folders, and moves files into them.

use std::io::ErrorKind;

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::{Files, SyncMode};
use crate::layout;
use gorego_storage::{Error, Result};

const DIR_MODE: Mode = Mode::from_bits_retain(0o777);

/// The attempts to create a folder for a file while other threads remove it as empty.
const ATTEMPTS: usize = 16;

impl Files {
    /// Creates a folder and those above it if they are missing, and adds the new ones to `made`.
    pub(crate) fn make_dir<'a>(&self, relative: &'a str, made: &mut Vec<&'a str>) -> Result<()> {
        let above = relative.match_indices('/').map(|(end, _)| end);
        let mut changes = self.folder_changes.lock();
        for path in above
            .chain([relative.len()])
            .filter_map(|end| relative.get(..end))
        {
            match rustix::fs::mkdirat(self.dir(), path, DIR_MODE) {
                Ok(()) => {
                    made.push(path);
                    *changes += 1;
                    if !layout::is_root(path) {
                        self.room.folder_made();
                    }
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.error("creating", path, errno)),
            }
        }
        Ok(())
    }

    /// Removes a folder if it is empty; `true` if it no longer exists.
    pub(crate) fn remove_empty(&self, relative: &str) -> bool {
        let mut changes = self.folder_changes.lock();
        match rustix::fs::unlinkat(self.dir(), relative, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.room.folder_removed();
                *changes += 1;
                true
            }
            Err(errno) => errno == Errno::NOENT,
        }
    }

    /// Moves a file to its place, replacing another file, and creates the folders on the way.
    pub(crate) fn publish(&self, from: &str, to: &str) -> Result<()> {
        let mut made = Vec::new();
        for _ in 0..ATTEMPTS {
            match rustix::fs::renameat(self.dir(), from, self.dir(), to) {
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.error("publishing", to, errno)),
                Ok(()) if self.sync == SyncMode::Full => return self.sync_dirs(to, &made),
                Ok(()) => return Ok(()),
            }
            match self.make_dir(layout::folder_of(to), &mut made) {
                // Another thread removed one as empty before the next one was created in it.
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Err(self.error("publishing", to, Errno::NOENT))
    }

    /// Syncs the name of a file, and the names of the folders made for it.
    fn sync_dirs(&self, file: &str, made: &[&str]) -> Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        made.iter().chain([&file]).try_for_each(|path| {
            let folder = Some(layout::folder_of(path)).filter(|folder| !folder.is_empty());
            let folder = folder.unwrap_or(".");
            rustix::fs::openat(self.dir(), folder, flags, Mode::empty())
                .and_then(rustix::fs::fsync)
                .map_err(|errno| self.error("syncing", folder, errno))
        })
    }

    /// Lists the names in a folder; a missing folder is empty.
    pub(crate) fn list(&self, relative: &str) -> Result<Vec<String>> {
        let read = || -> rustix::io::Result<Vec<String>> {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(self.dir(), relative, flags, Mode::empty())?;
            let names = rustix::fs::Dir::read_from(dir)?.filter_map(|entry| {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(errno) => return Some(Err(errno)),
                };
                let name = entry.file_name().to_str().ok()?;
                (!matches!(name, "." | "..")).then(|| Ok(name.to_owned()))
            });
            names.collect()
        };
        match read() {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
            other => other.map_err(|errno| self.error("listing", relative, errno)),
        }
    }
}
