//! The order in which directories are read, within bounds.

use std::collections::VecDeque;

use super::{
    Redaction,
    model::{MAX_TEXT, clip},
};

/// The bounds of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The most directories that are read.
    pub(crate) directories: usize,
    /// The most MiB of the directories below the root.
    pub(crate) mib: u64,
}

/// The directories that remain to be read, with their paths. A client can refer to many of them in few bytes, so the
/// number and size of all that are ever added are limited.
pub(crate) struct Walk<T> {
    waiting: VecDeque<(String, T)>,
    /// The number of directories that can still be added.
    directories: usize,
    /// The bytes of directories that can still be added.
    bytes: u64,
}

impl<T> Walk<T> {
    /// Begins at `root`, which is one of the directories.
    pub(crate) fn new(bounds: Bounds, root: T) -> Self {
        Self {
            waiting: VecDeque::from([(String::new(), root)]),
            directories: bounds.directories.saturating_sub(1),
            bytes: bounds.mib << 20,
        }
    }

    /// Returns the next directory to read.
    pub(crate) fn next(&mut self) -> Option<(String, T)> {
        self.waiting.pop_front()
    }

    /// Adds a directory of this size. Returns `false` if it would exceed the bounds.
    pub(crate) fn add(&mut self, path: impl FnOnce() -> String, directory: T, size: u64) -> bool {
        let left = self.directories.checked_sub(1);
        let Some((directories, bytes)) = left.zip(self.bytes.checked_sub(size)) else {
            return false;
        };
        (self.directories, self.bytes) = (directories, bytes);
        self.waiting.push_back((path(), directory));
        true
    }
}

/// Returns the path of the entry `name` of the directory at `path`, redacted and cut to length.
pub(crate) fn below(path: &str, name: &str, redaction: &Redaction) -> String {
    let path = if path.is_empty() {
        redaction.name(name)
    } else {
        redaction.name(&format!("{path}/{name}"))
    };
    clip(&path, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_beyond_the_bounds_are_not_kept() {
        let bounds = Bounds {
            directories: 4,
            mib: 1,
        };
        let mut walk = Walk::new(bounds, 0);
        assert_eq!(walk.next(), Some((String::new(), 0)));
        let mut add = |number, size| walk.add(|| "a".to_owned(), number, size);
        assert!(add(1, 1 << 19));
        assert!(!add(2, (1 << 19) + 1), "too large");
        assert!(add(3, 1 << 19));
        assert!(!add(4, 1), "too large together with the others");
        assert!(add(5, 0));
        assert_eq!(walk.next(), Some(("a".to_owned(), 1)));
        assert!(
            !walk.add(|| "b".to_owned(), 6, 0),
            "those that were read count, too"
        );
        assert_eq!(walk.next(), Some(("a".to_owned(), 3)));
        assert_eq!(walk.next(), Some(("a".to_owned(), 5)));
        assert_eq!(walk.next(), None);
    }

    #[test]
    fn the_paths_of_deep_directories_are_cut() {
        let redaction = Redaction::new::<&str>(&[]).unwrap();
        let mut path = String::new();
        for _ in 0..100 {
            path = below(&path, "directory", &redaction);
        }
        assert!(path.len() <= MAX_TEXT && path.ends_with('…'), "{path}");
        assert!(path.starts_with("directory/directory/"));
    }
}
