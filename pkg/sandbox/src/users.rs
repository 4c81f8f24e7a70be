//! Users that commands can be started as.

use std::{fs, ops::Range};

use rustix::process::geteuid;

/// Returns whether this process can start commands as these users, with groups of the same numbers: root can, where
/// its user namespace has them.
pub fn has_users(ids: &Range<u32>) -> bool {
    geteuid().is_root()
        && ["/proc/self/uid_map", "/proc/self/gid_map"]
            .iter()
            .all(|file| {
                let map = fs::read_to_string(file).unwrap_or_default();
                map.lines().any(|line| contains(line, ids))
            })
}

/// Returns whether a line of a map, `first outside count`, has all these ids.
fn contains(line: &str, ids: &Range<u32>) -> bool {
    let numbers: Option<Vec<u64>> = line.split_whitespace().map(|n| n.parse().ok()).collect();
    let (start, end) = (u64::from(ids.start), u64::from(ids.end));
    matches!(numbers.as_deref(), Some([first, _, count]) if *first <= start && end <= first + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_the_ids_from_its_first_on() {
        for (line, expected) in [
            ("         0          0 4294967295", true),
            ("0 1000 1", false),
            ("10 100000 10", true),
            ("11 100000 10", false),
            ("10 100000 9", false),
            ("10 100000", false),
            ("", false),
        ] {
            assert_eq!(contains(line, &(10..20)), expected, "{line}");
        }
    }
}
