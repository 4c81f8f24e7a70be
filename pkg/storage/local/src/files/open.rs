//! Opens and creates files. Never follows a link, and never blocks on a pipe.

use std::{
    fs,
    io::{ErrorKind, IoSliceMut},
    sync::atomic::Ordering::Relaxed,
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::{Errno, ReadWriteFlags, preadv2},
};

use super::{
    super::layout::{self, TMP},
    BLOB_MODE, Files, Meta, UPLOAD_MODE,
};
use gorego_storage::{Error, Result};

/// The flags of all files that may be replaced by something else.
const SAFE: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK);

impl Files {
    /// Returns a folder to which no file can be moved, since it is on another file system.
    pub(crate) fn elsewhere(&self) -> Result<Option<String>> {
        const PROBE: &str = "probe";
        let mut at = PROBE.to_owned();
        match self.open_regular(&at, OFlags::RDWR | OFlags::CREATE, UPLOAD_MODE) {
            // A full disk can still be read from.
            Ok(None) | Err(Errno::NOSPC | Errno::DQUOT) => return Ok(None),
            opened => opened.map_err(|errno| self.error("creating", &at, errno))?,
        };
        let subfolders = layout::subfolders().filter(|path| self.is_folder(path) == Some(true));
        let folders = layout::ROOTS
            .map(str::to_owned)
            .into_iter()
            .chain(subfolders);
        let mut elsewhere = None;
        for folder in folders {
            let to = format!("{folder}/{PROBE}");
            match rustix::fs::renameat(self.dir(), &*at, self.dir(), &*to) {
                Ok(()) => at = to,
                Err(Errno::XDEV) => elsewhere = Some(folder),
                // Other obstacles are quarantined when the folder is needed.
                Err(Errno::NOSPC | Errno::DQUOT | Errno::NOTDIR) => {}
                Err(errno) => return Err(self.error("moving a file to", &folder, errno)),
            }
        }
        self.unlink(&at)?;
        Ok(elsewhere)
    }

    /// Opens a file for reading without updating its last use; `None` if there is no such regular file.
    pub(crate) fn open_read(&self, relative: &str) -> Result<Option<(fs::File, Meta)>> {
        let open = |extra| self.open_regular(relative, OFlags::RDONLY | extra, Mode::empty());
        let mut opened = if self.noatime.load(Relaxed) {
            open(OFlags::NOATIME)
        } else {
            open(OFlags::empty())
        };
        if matches!(opened, Err(Errno::PERM)) {
            // Permitted only to the file's owner.
            self.noatime.store(false, Relaxed);
            opened = open(OFlags::empty());
        }
        match opened {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            other => other.map_err(|errno| self.error("opening", relative, errno)),
        }
    }

    /// Reads a file of `len` bytes without updating its last use. Does not wait for the disk: `None` unless the kernel
    /// has all of it in memory.
    pub(crate) fn read_cached(&self, relative: &str, len: usize) -> Option<Bytes> {
        let mut flags = OFlags::RDONLY | SAFE;
        flags.set(OFlags::NOATIME, self.noatime.load(Relaxed));
        let cached = ResolveFlags::CACHED;
        let file = rustix::fs::openat2(self.dir(), relative, flags, Mode::empty(), cached).ok()?;
        // One more finds that the file is longer.
        let mut content = vec![0; len + 1];
        let mut parts = [IoSliceMut::new(&mut content)];
        let read = preadv2(&file, &mut parts, 0, ReadWriteFlags::NOWAIT).ok()?;
        content.truncate(len);
        (read == len).then(|| content.into())
    }

    /// Opens a file for reading that this process writes.
    pub(crate) fn open_written(&self, relative: &str) -> Result<fs::File> {
        let opened = self.open_read(relative)?;
        let (file, _) = opened.ok_or_else(|| self.error("opening", relative, Errno::NOENT))?;
        Ok(file)
    }

    /// Opens a regular file; `None` if the path leads to something else.
    fn open_regular(
        &self,
        relative: &str,
        flags: OFlags,
        mode: Mode,
    ) -> rustix::io::Result<Option<(fs::File, Meta)>> {
        match rustix::fs::openat(self.dir(), relative, flags | SAFE, mode) {
            Ok(file) => {
                let meta = Meta::of(&rustix::fs::fstat(&file)?);
                Ok(meta.is_file().then(|| (file.into(), meta)))
            }
            // A link, a folder to be written, a socket, a device.
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Creates a file with the mode of a blob in [`TMP`]; returns its path, too.
    pub(crate) fn create_tmp(&self) -> Result<(String, fs::File)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        self.in_tmp("creating", |name| {
            rustix::fs::openat(self.dir(), name, flags, BLOB_MODE).map(fs::File::from)
        })
    }

    /// Links a file into [`TMP`]; `None` if the file system does not support that.
    pub(crate) fn link_tmp(&self, relative: &str) -> Result<Option<String>> {
        let link = |name: &str| {
            let linked =
                rustix::fs::linkat(self.dir(), relative, self.dir(), name, AtFlags::empty());
            match linked {
                Err(Errno::MLINK | Errno::PERM | Errno::XDEV | Errno::OPNOTSUPP) => Ok(false),
                linked => linked.map(|()| true),
            }
        };
        let (name, is_linked) = self.in_tmp("linking", link)?;
        Ok(is_linked.then_some(name))
    }

    /// Runs `work` with a new path in [`TMP`], a folder that is recreated if it was removed.
    pub(super) fn in_tmp<T>(
        &self,
        action: &'static str,
        work: impl Fn(&str) -> rustix::io::Result<T>,
    ) -> Result<(String, T)> {
        let mut restored = false;
        loop {
            let name = format!("{TMP}/{:x}", self.next_tmp.fetch_add(1, Relaxed));
            match work(&name) {
                Ok(done) => return Ok((name, done)),
                // For example a folder of that name, which was not removed at the start.
                Err(Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY) => {}
                Err(Errno::NOENT) if !restored => {
                    self.restore()?;
                    restored = true;
                }
                Err(errno) => return Err(self.error(action, &name, errno)),
            }
        }
    }

    /// Opens or creates the file of a partial upload for reading and writing. `None` if something other than
    /// a regular file is at the path.
    pub(crate) fn open_upload(&self, relative: &str) -> Result<Option<(fs::File, Meta)>> {
        let open = || {
            let flags = OFlags::RDWR | OFlags::CREATE;
            let opened = self.open_regular(relative, flags, UPLOAD_MODE);
            opened.map_err(|errno| self.error("creating", relative, errno))
        };
        match open() {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                self.restore()?;
                open()
            }
            // It was sealed, but not moved to its place before the process ended.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                rustix::fs::chmodat(self.dir(), relative, UPLOAD_MODE, AtFlags::empty())
                    .map_err(|errno| self.error("reopening", relative, errno))?;
                open()
            }
            other => other,
        }
    }
}
