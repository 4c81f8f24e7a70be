//! The order in which directories are read, within bounds.

use std::collections::VecDeque;

use super::{
    Redaction,
    model::{MAX_TEXT, clip},
};

/// The directories that remain to be read, with their paths. A client can refer to many of them in few bytes, so the
/// number of all that are ever added is limited.
pub(crate) struct Walk<T> {
    waiting: VecDeque<(String, T)>,
    left: usize,
}

impl<T> Walk<T> {
    /// Begins at `root`. At most `most` directories are read, `root` included.
    pub(crate) fn new(most: usize, root: T) -> Self {
        Self {
            waiting: VecDeque::from([(String::new(), root)]),
            left: most.saturating_sub(1),
        }
    }

    /// Returns the next directory to read.
    pub(crate) fn next(&mut self) -> Option<(String, T)> {
        self.waiting.pop_front()
    }

    /// Adds a directory. Returns `false` if it would be one too many.
    pub(crate) fn add(&mut self, path: &str, directory: T) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        self.left = left;
        self.waiting.push_back((path.to_owned(), directory));
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
    fn directories_beyond_the_limit_are_not_kept() {
        let mut walk = Walk::new(3, 0);
        assert_eq!(walk.next(), Some((String::new(), 0)));
        assert_eq!(
            [1, 2, 3].map(|number| walk.add("a", number)),
            [true, true, false]
        );
        assert_eq!(walk.next(), Some(("a".to_owned(), 1)));
        assert!(!walk.add("b", 4), "those that were read count, too");
        assert_eq!(walk.next(), Some(("a".to_owned(), 2)));
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
