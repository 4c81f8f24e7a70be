//! Comparable snapshots of directories.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::content;

/// An entry of a directory, with the properties that the REAPI can represent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// A directory, whose content has entries of its own.
    Directory,
    /// A regular file.
    File {
        /// The SHA-256 of the content, in hexadecimal digits.
        hash: String,
        /// Whether the owner may execute the file.
        executable: bool,
    },
    /// A symbolic link, not followed.
    Symlink(PathBuf),
}

/// Returns all entries below `dir`, by relative path.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    walk(dir, &mut |path, entry| {
        let relative = path.strip_prefix(dir).expect("the walk stays below");
        entries.insert(relative.to_owned(), entry);
    });
    entries
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path, Entry)) {
    let children = fs::read_dir(dir).unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()));
    for child in children {
        let path = child.expect("an entry of a directory").path();
        let entry = entry(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()));
        let descend = entry == Entry::Directory;
        visit(&path, entry);
        if descend {
            walk(&path, visit);
        }
    }
}

fn entry(path: &Path) -> std::io::Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(if metadata.is_dir() {
        Entry::Directory
    } else if metadata.is_symlink() {
        Entry::Symlink(fs::read_link(path)?)
    } else {
        Entry::File {
            hash: content::hash_of(File::open(path)?)?,
            executable: metadata.permissions().mode() & 0o100 != 0,
        }
    })
}
