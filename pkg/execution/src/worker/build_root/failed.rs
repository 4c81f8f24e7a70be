//! The directories of failed actions, which are kept so that the cause can be found.

use std::{collections::VecDeque, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use gorego_storage::Error;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::{ActionDir, BuildRoot, FAILED, PRIVATE, TMP, list};
use crate::beneath::{io as io_error, open_child};

/// The most directories that are kept.
const MOST: usize = 10;

/// The folder of the directories of failed actions, the newest ten.
#[derive(Debug)]
pub(crate) struct Failed {
    path: PathBuf,
    dir: OwnedFd,
    /// The names in the folder, the oldest first.
    names: Mutex<VecDeque<String>>,
}

impl Failed {
    /// Opens the folder with what earlier processes kept. Blocks.
    pub(crate) fn open(build_root: &BuildRoot) -> Result<Self, Error> {
        match rustix::fs::mkdirat(&build_root.dir, FAILED, PRIVATE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("creating", FAILED)(errno)),
        }
        let dir = open_child(&build_root.dir, FAILED).map_err(io_error("opening", FAILED))?;
        let mut names = list(&dir)?;
        names.sort_by_key(|name| age(name));
        let failed = Self {
            path: build_root.path.join(FAILED),
            dir,
            names: Mutex::new(names.into()),
        };
        failed.discard(build_root, MOST);
        Ok(failed)
    }

    /// Moves the folder to the trash, if there is one.
    pub(crate) fn remove(build_root: &BuildRoot) -> Result<(), Error> {
        match build_root.discard(FAILED) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io_error("removing", FAILED)(errno)),
        }
    }

    /// Moves the directory of an action into this folder when it is dropped. Returns the path that it has then.
    pub(crate) fn keep(self: &Arc<Self>, dir: &ActionDir) -> PathBuf {
        let _ = dir.kept.set(Arc::clone(self));
        self.path.join(&dir.name)
    }

    /// Returns the folder for temporary files in the directory of an action that is kept.
    pub(crate) fn tmp(&self, dir: &ActionDir) -> PathBuf {
        self.path.join(&dir.name).join(TMP)
    }

    /// Moves a directory of the build root into this folder, and the oldest to the trash if there are too many.
    pub(super) fn add(&self, build_root: &BuildRoot, name: &str) -> Result<(), Errno> {
        if let Err(errno) = rustix::fs::renameat(&build_root.dir, name, &self.dir, name) {
            let _ = build_root.discard(name);
            return Err(errno);
        }
        self.names.lock().push_back(name.to_owned());
        self.discard(build_root, MOST);
        Ok(())
    }

    /// Moves the oldest directories to the trash until at most `most` are left.
    pub(crate) fn discard(&self, build_root: &BuildRoot, most: usize) {
        let mut names = self.names.lock();
        while names.len() > most {
            let Some(name) = names.pop_front() else {
                return;
            };
            let new = build_root.new_name();
            // Fails if the directory was removed meanwhile.
            let _ = rustix::fs::renameat(&self.dir, &*name, &build_root.trash, new);
            build_root.dirty.notify_one();
        }
    }
}

/// Returns a key by which the names of directories are ordered as they were created.
fn age(name: &str) -> Option<(u128, u64)> {
    let (generation, number) = name.split_once('-')?;
    let generation = u128::from_str_radix(generation, 16).ok()?;
    Some((generation, number.parse().ok()?))
}
