//! The directories of failed actions, which are kept so that the cause can be found.

use std::{collections::VecDeque, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use gorego_sandbox::disk_space;
use gorego_storage::Error;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::{ActionDir, BuildRoot, FAILED, PRIVATE, TMP, list};
use crate::beneath::{io as io_error, open_child};

/// The most directories that are kept.
const MOST: usize = 10;

/// The folder of the directories of failed actions, the newest ten. They have at most `most_bytes` together, unless the
/// newest has more by itself.
#[derive(Debug)]
pub(crate) struct Failed {
    path: PathBuf,
    dir: OwnedFd,
    most_bytes: u64,
    /// The names in the folder and the bytes below, the oldest first.
    kept: Mutex<VecDeque<(String, u64)>>,
}

impl Failed {
    /// Opens the folder with what earlier processes kept. Blocks.
    pub(crate) fn open(build_root: &BuildRoot, most_bytes: u64) -> Result<Self, Error> {
        match rustix::fs::mkdirat(&build_root.dir, FAILED, PRIVATE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("creating", FAILED)(errno)),
        }
        let dir = open_child(&build_root.dir, FAILED).map_err(io_error("opening", FAILED))?;
        let mut names = list(&dir)?;
        names.sort_by_key(|name| age(name));
        let kept = names.into_iter().map(|name| {
            let bytes = open_child(&dir, &name).map_or(u64::MAX, |opened| space_of(&opened));
            (name, bytes)
        });
        let kept = Mutex::new(kept.collect());
        let failed = Self {
            path: build_root.path.join(FAILED),
            dir,
            most_bytes,
            kept,
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

    /// Moves the directory of an action, which has this many `bytes`, into this folder when it is dropped. Returns the
    /// path that it has then.
    pub(crate) fn keep(self: &Arc<Self>, dir: &ActionDir, bytes: u64) -> PathBuf {
        let _ = dir.kept.set((Arc::clone(self), bytes));
        self.path.join(&dir.name)
    }

    /// Returns the folder for temporary files in the directory of an action that is kept.
    pub(crate) fn tmp(&self, dir: &ActionDir) -> PathBuf {
        self.path.join(&dir.name).join(TMP)
    }

    /// Moves a directory of the build root into this folder, and the oldest to the trash if there are too many.
    pub(super) fn add(&self, build_root: &BuildRoot, name: &str, bytes: u64) -> Result<(), Errno> {
        if let Err(errno) = rustix::fs::renameat(&build_root.dir, name, &self.dir, name) {
            let _ = build_root.discard(name);
            return Err(errno);
        }
        self.kept.lock().push_back((name.to_owned(), bytes));
        self.discard(build_root, MOST);
        Ok(())
    }

    /// Moves the oldest directories to the trash until at most `most` are left, and they have few enough bytes.
    pub(crate) fn discard(&self, build_root: &BuildRoot, most: usize) {
        let mut kept = self.kept.lock();
        let bytes = |kept: &VecDeque<(_, u64)>| {
            kept.iter().fold(0, |all: u64, it| all.saturating_add(it.1))
        };
        while kept.len() > most || (kept.len() > 1 && bytes(&kept) > self.most_bytes) {
            let Some((name, _)) = kept.pop_front() else {
                return;
            };
            let new = build_root.new_name();
            // Fails if the directory was removed meanwhile.
            let _ = rustix::fs::renameat(&self.dir, &*name, &build_root.trash, new);
            build_root.dirty.notify_one();
        }
    }
}

/// Returns the disk space of a directory in bytes, among it that of inputs, which are links to blobs. One that cannot be
/// measured counts as large.
pub(crate) fn space_of(dir: &OwnedFd) -> u64 {
    disk_space(dir).unwrap_or(u64::MAX)
}

/// Returns a key by which the names of directories are ordered as they were created.
fn age(name: &str) -> Option<(u128, u64)> {
    let (generation, number) = name.split_once('-')?;
    let generation = u128::from_str_radix(generation, 16).ok()?;
    Some((generation, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn directories_that_are_kept_have_few_bytes_together_also_after_a_restart() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let left = || fs::read_dir(dir.path().join(FAILED)).unwrap().count();
        let keep = |root: &Arc<BuildRoot>, failed: &Arc<Failed>, mib: u64| {
            let action = root.create(None, false).unwrap();
            fs::write(action.path("file"), vec![1; 1 << 20]).unwrap();
            failed.keep(&action, mib * MIB)
        };
        let root = BuildRoot::open(dir.path()).unwrap();
        let failed = Arc::new(Failed::open(&root, 4 * MIB + MIB / 2).unwrap());
        let all = [1, 2, 2].map(|mib| keep(&root, &failed, mib));
        assert_eq!(all.map(|path| path.exists()), [false, true, true]);
        // The newest stays, whatever its size.
        let large = keep(&root, &failed, 7);
        assert_eq!(left(), 1);
        assert!(large.exists());
        let all = [1, 1].map(|mib| keep(&root, &failed, mib));
        assert_eq!(left(), 2);
        drop((failed, root));
        let root = BuildRoot::open(dir.path()).unwrap();
        // File systems may allocate the files later, but not none of them.
        let failed = Failed::open(&root, 0).unwrap();
        assert_eq!(all.map(|path| path.exists()), [false, true]);
        failed.discard(&root, 0);
        assert_eq!(left(), 0);
    }
}
