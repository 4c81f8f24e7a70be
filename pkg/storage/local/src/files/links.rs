//! Moves and links files between the data directory and the directories of actions.

use std::{
    ffi::OsStr,
    fs, io,
    io::{Read as _, Seek as _},
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, StatxFlags, Timestamps, statx},
    io::Errno,
    process::Uid,
};

use super::{Files, Form, Meta, NOW, Stamp, TWIN_MODE, UNCHANGED, mode_of};
use gorego_storage::{Error, Result};

/// The outcome of a link.
pub(crate) enum LinkedOut {
    /// The status of the new name.
    Linked(Meta),
    /// There is no such file.
    Missing,
    /// The file system does not permit the link.
    Refused,
}

impl Files {
    /// Returns whether a file is as a blob of `size` bytes, or its twin, was published, but for its time and content.
    pub(crate) fn is_intact(&self, meta: &Meta, form: Form, size: u64) -> bool {
        let mode = meta.mode.as_raw_mode() & 0o7777 == mode_of(form).as_raw_mode();
        mode && meta.is_file() && meta.uid == self.uid && meta.size == size
    }

    /// Whether a file can be moved into the data directory: it has no other name, and belongs to this process.
    pub(crate) fn is_movable(&self, meta: &Meta) -> bool {
        meta.is_file() && meta.has_one_name && meta.uid == self.uid
    }

    /// Links a file into another directory.
    pub(crate) fn link_out(
        &self,
        relative: &str,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<LinkedOut> {
        let error = |errno: Errno| Error::io("linking", name, errno.into());
        match rustix::fs::linkat(self.dir(), relative, dir, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(LinkedOut::Missing),
            Err(Errno::MLINK | Errno::PERM | Errno::XDEV | Errno::OPNOTSUPP) => {
                return Ok(LinkedOut::Refused);
            }
            Err(errno) => return Err(error(errno)),
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.inspect_err(|_| {
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        });
        Ok(LinkedOut::Linked(Meta::of(&stat.map_err(error)?)))
    }

    /// Returns whether files of the data directory can have links in `dir`, as far as the system reports it.
    pub(crate) fn may_have_links(&self, dir: BorrowedFd<'_>) -> bool {
        // The mount, since a file system that is mounted twice refuses links between the two, too.
        let place = |dir: BorrowedFd<'_>| {
            let status = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
            let is_known =
                StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::MNT_ID);
            let mount = is_known.then_some(status.stx_mnt_id);
            Some((status.stx_dev_major, status.stx_dev_minor, mount))
        };
        let own = self.dir();
        match (place(own.as_fd()), place(dir)) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        }
    }

    /// Lets `write` fill a new file, which gets the mode of a twin; returns its path in [`super::TMP`].
    pub(crate) fn write_twin(&self, write: impl FnOnce(&fs::File) -> Result<()>) -> Result<String> {
        let (tmp, file) = self.create_tmp()?;
        let written = write(&file).and_then(|()| {
            let changed = rustix::fs::fchmod(&file, TWIN_MODE);
            changed.map_err(|errno| self.error("sealing", &tmp, errno))
        });
        if let Err(error) = written {
            self.unlink(&tmp)?;
            return Err(error);
        }
        Ok(tmp)
    }

    /// Gives a twin its name. `false` if there is one already, or no folder for it.
    pub(crate) fn name_twin(&self, tmp: &str, path: &str) -> Result<bool> {
        match rustix::fs::linkat(self.dir(), tmp, self.dir(), path, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::PERM | Errno::OPNOTSUPP) => {
                Ok(false)
            }
            Err(errno) => Err(self.error("naming", path, errno)),
        }
    }

    /// Moves a file of another directory into [`super::TMP`]; `None` if it is on another file system.
    pub(crate) fn move_in(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<String>> {
        let (tmp, is_moved) = self.in_tmp("adopting", |tmp| {
            match rustix::fs::renameat(dir, name, self.dir(), tmp) {
                Err(Errno::XDEV) => Ok(false),
                moved => moved.map(|()| true),
            }
        })?;
        Ok(is_moved.then_some(tmp))
    }

    /// Moves a file back that [`Self::move_in`] moved, or removes it.
    pub(crate) fn move_back(&self, tmp: &str, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        rustix::fs::renameat(self.dir(), tmp, dir, name).or_else(|_| self.unlink(tmp))
    }

    /// Gives a file the mode and the owner of a blob or twin, and a time of change: that of a stamp, or now.
    pub(crate) fn set_meta(
        &self,
        file: &fs::File,
        form: Form,
        stamp: Option<Stamp>,
    ) -> io::Result<()> {
        let stat = rustix::fs::fstat(file)?;
        if stat.st_uid != self.uid {
            rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), None)?;
        }
        rustix::fs::fchmod(file, mode_of(form))?;
        let last_modification = stamp.map_or(NOW, Stamp::time);
        let times = Timestamps {
            last_access: UNCHANGED,
            last_modification,
        };
        Ok(rustix::fs::futimens(file, &times)?)
    }
}

/// Returns the status of an open file.
pub(crate) fn meta_of(file: &fs::File) -> io::Result<Meta> {
    Ok(Meta::of(&rustix::fs::fstat(file)?))
}

/// Copies the first `len` bytes of a file, or all of a shorter one, by reference where the file system can. Blocks.
pub(crate) fn copy(from: &fs::File, to: &fs::File, len: u64) -> io::Result<u64> {
    let (mut from, mut to) = (from, to);
    from.rewind()?;
    io::copy(&mut from.take(len), &mut to)
}
