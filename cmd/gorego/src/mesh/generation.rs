//! The number of a start, which is larger than that of all earlier starts.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use gorego_scheduler::Generation;

use super::Error;

/// The file in the data directory with the number of the last start.
const FILE: &str = "generation";

/// Returns the run that begins, and stores its number: the time in milliseconds, or one more than the last.
pub(super) fn next(dir: &Path, node: &str) -> Result<Generation, Error> {
    let file = dir.join(FILE);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    // An unreadable file is replaced.
    let last = fs::read_to_string(&file).ok();
    let last = last.and_then(|last| last.trim().parse::<u64>().ok());
    let number = last.map_or(now, |last| now.max(last.saturating_add(1)));
    let new = dir.join(format!("{FILE}.new"));
    let written = fs::write(&new, format!("{number}\n")).and_then(|()| fs::rename(&new, &file));
    written.map_err(|why| Error::Generation(file, why))?;
    // Operations already use the name, so it is valid.
    Generation::new(node, number).map_err(Error::Node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_grows_though_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(dir.path(), "a").unwrap();
        let second = next(dir.path(), "a").unwrap();
        assert!(second.number() > first.number());
        let far = u64::MAX / 2;
        fs::write(dir.path().join(FILE), far.to_string()).unwrap();
        assert_eq!(next(dir.path(), "a").unwrap().number(), far + 1);
        fs::write(dir.path().join(FILE), "?").unwrap();
        assert!(next(dir.path(), "a").unwrap().number() < far);
    }
}
