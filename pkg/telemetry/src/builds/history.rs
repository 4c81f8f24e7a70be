//! The builds on the disk: a file for each build, and two files of what explanations rest on.
//!
//! A file begins with a line with the checksum of the rest, and is renamed into place. A truncated or corrupt file of a
//! build is removed; of the other two, it is ignored until it is written again. A whole file that this release cannot
//! parse may be of another one, and stays within the limit.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use gorego_storage::DigestFunction;
use serde::de::DeserializeOwned;

use super::{Build, state::MAX_BUILDS};

/// The folder in the data directory.
const FOLDER: &str = "builds";
/// The end of the names of files of builds.
const BUILD: &str = ".build";
/// The file of known actions.
const KNOWN: &str = "actions";
/// The file of evictions.
const EVICTIONS: &str = "evictions";
/// The end of the names of files that are being written.
const PARTIAL: &str = ".new";
/// The largest file that is read: more than the largest that is written.
const MAX_FILE: u64 = 32 * 1024 * 1024;

/// The folder of the builds. All methods block.
#[derive(Clone, Debug)]
pub(crate) struct History {
    folder: PathBuf,
    /// The most bytes of disk that all files may take.
    max_bytes: u64,
    /// The most files of builds.
    max_files: usize,
}

impl History {
    /// Keeps the builds in the data directory `dir`.
    pub(crate) fn new(dir: &Path, max_bytes: u64) -> Self {
        Self {
            folder: dir.join(FOLDER),
            max_bytes,
            max_files: MAX_BUILDS,
        }
    }

    /// Reads the builds, the newest first, until `see` returns `false`. Removes those that are damaged or beyond
    /// the limit, and what a crash left. One that cannot be read or parsed is logged and skipped.
    pub(crate) fn load(&self, mut see: impl FnMut(Build) -> bool) -> io::Result<()> {
        self.trim()?;
        for BuildFile { path, .. } in self.files()?.into_iter().rev() {
            let read = match content_of(&path) {
                Ok(Some(content)) => serde_json::from_slice(&content).map_err(io::Error::from),
                Ok(None) => {
                    skipped(
                        fs::remove_file(&path),
                        "failed to remove a damaged build",
                        &path,
                    );
                    continue;
                }
                Err(error) => Err(error),
            };
            let build = skipped(read, "failed to read a build of an earlier run", &path);
            if build.is_some_and(|build| !see(build)) {
                break;
            }
        }
        Ok(())
    }

    /// Reads a build.
    pub(crate) fn build(&self, id: &str) -> io::Result<Option<Build>> {
        let found = read::<Build>(&self.path_of(id))?;
        Ok(found.filter(|build| build.head.id == id))
    }

    /// Writes builds, then removes the oldest beyond the limit.
    pub(crate) fn save(&self, builds: &[Build]) -> io::Result<()> {
        for build in builds {
            let content = serde_json::to_vec(build)?;
            self.write(&self.path_of(&build.head.id), &content)?;
        }
        self.trim()
    }

    /// Reads the known actions.
    pub(crate) fn known<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        read(&self.folder.join(KNOWN))
    }

    /// Writes the known actions, encoded.
    pub(crate) fn save_known(&self, encoded: &[u8]) -> io::Result<()> {
        self.save_records(KNOWN, encoded)
    }

    /// Reads the evictions, encoded.
    pub(crate) fn evictions(&self) -> io::Result<Option<Vec<u8>>> {
        content_of(&self.folder.join(EVICTIONS))
    }

    /// Writes the evictions, encoded.
    pub(crate) fn save_evictions(&self, encoded: &[u8]) -> io::Result<()> {
        self.save_records(EVICTIONS, encoded)
    }

    /// Writes records of explanations, then removes the oldest builds beyond the limit. Keeps none that would take more
    /// than a quarter of it.
    fn save_records(&self, name: &str, encoded: &[u8]) -> io::Result<()> {
        let path = self.folder.join(name);
        if encoded.len() as u64 > self.max_bytes / 4 {
            return remove_if_present(&path);
        }
        self.write(&path, encoded)?;
        self.trim()
    }

    /// Removes all that was kept, and the folder unless something else is in it.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let records = [KNOWN, EVICTIONS].map(|name| self.folder.join(name));
        let builds = self.files()?.into_iter().map(|file| file.path);
        for path in builds.chain(records) {
            remove_if_present(&path)?;
        }
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    /// Returns the path of a build's file. The id is any text, so its hash is the name.
    fn path_of(&self, id: &str) -> PathBuf {
        let hash = DigestFunction::Sha256.digest(id.as_bytes()).hex();
        let name = hash.get(..32).unwrap_or_default();
        self.folder.join(format!("{name}{BUILD}"))
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(PARTIAL);
        let mut checked = DigestFunction::Sha256.digest(content).hex().into_bytes();
        checked.push(b'\n');
        checked.extend_from_slice(content);
        let written = fs::write(&partial, checked).and_then(|()| fs::rename(&partial, path));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    /// Removes the oldest builds beyond the limit, and partial files.
    fn trim(&self) -> io::Result<()> {
        let files = self.files()?;
        let records = [KNOWN, EVICTIONS].map(|name| fs::symlink_metadata(self.folder.join(name)));
        let records = records.iter().flatten().map(disk_bytes);
        let mut total: u64 = files.iter().map(|file| file.bytes).chain(records).sum();
        for (remaining, file) in (1..=files.len()).rev().zip(files) {
            if total <= self.max_bytes && remaining <= self.max_files {
                break;
            }
            let removed = fs::remove_file(&file.path);
            if skipped(removed, "failed to remove an old build", &file.path).is_some() {
                total -= file.bytes;
            }
        }
        Ok(())
    }

    /// Lists the files of builds, the oldest first. Removes partial ones.
    fn files(&self) -> io::Result<Vec<BuildFile>> {
        let listed = match fs::read_dir(&self.folder) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in listed {
            let Some(entry) = skipped(entry, "failed to list a build", &self.folder) else {
                continue;
            };
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(PARTIAL) {
                let _ = fs::remove_file(&path);
            } else if name.ends_with(BUILD) {
                let meta = skipped(entry.metadata(), "failed to inspect a build", &path);
                files.extend(
                    meta.filter(fs::Metadata::is_file)
                        .map(|meta| BuildFile::new(path, &meta)),
                );
            }
        }
        files.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
        Ok(files)
    }
}

/// Returns the value; logs the failure, which concerns only one file.
fn skipped<T>(outcome: io::Result<T>, what: &str, path: &Path) -> Option<T> {
    outcome
        .inspect_err(|error| tracing::warn!(%error, "{what}: {}", path.display()))
        .ok()
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let content = content_of(path)?;
    Ok(content.and_then(|content| serde_json::from_slice(&content).ok()))
}

/// Returns the content of a file; `None` if it is missing or damaged.
fn content_of(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Ok(None);
    }
    let mut checked = fs::read(path)?;
    let Some(end) = checked.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let content = checked.split_off(end + 1);
    checked.pop();
    let checksum = DigestFunction::Sha256.digest(&content).hex();
    Ok((checked == checksum.as_bytes()).then_some(content))
}

struct BuildFile {
    modified: SystemTime,
    bytes: u64,
    path: PathBuf,
}

impl BuildFile {
    fn new(path: PathBuf, meta: &fs::Metadata) -> Self {
        Self {
            modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            bytes: disk_bytes(meta),
            path,
        }
    }
}

/// Returns the disk space of a file. Some file systems allocate it late.
fn disk_bytes(meta: &fs::Metadata) -> u64 {
    meta.len().max(meta.blocks() * 512)
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builds::BuildHead;

    fn build(id: &str) -> Build {
        let head = BuildHead {
            id: id.to_owned(),
            ..BuildHead::default()
        };
        Build {
            head,
            ..Build::default()
        }
    }

    fn ids(history: &History) -> Vec<String> {
        let mut ids = Vec::new();
        let see = |build: Build| {
            ids.push(build.head.id);
            true
        };
        history.load(see).unwrap();
        ids.sort();
        ids
    }

    /// Makes the file of a build older than those written before and after.
    fn age(history: &History, id: &str, seconds: u64) {
        let file = fs::File::options()
            .write(true)
            .open(history.path_of(id))
            .unwrap();
        let age = std::time::Duration::from_secs(seconds);
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn builds_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        assert!(ids(&history).is_empty());
        history
            .save(&[build("one"), build("../../etc/two")])
            .unwrap();
        history.save(&[build("one")]).unwrap();
        assert_eq!(ids(&history), ["../../etc/two", "one"]);
        assert_eq!(history.build("one").unwrap(), Some(build("one")));
        assert_eq!(history.build("three").unwrap(), None);
    }

    #[test]
    fn the_oldest_builds_beyond_the_limit_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        history.save(&[build("1"), build("2"), build("3")]).unwrap();
        for (id, seconds) in [("1", 30), ("2", 20), ("3", 10)] {
            age(&history, id, seconds);
        }
        // A small file takes a whole block.
        let bytes = disk_bytes(&fs::metadata(history.path_of("1")).unwrap());
        let limited = History::new(dir.path(), bytes * 2);
        limited.save(&[build("4")]).unwrap();
        assert_eq!(ids(&limited), ["3", "4"]);
        limited.save_known(b"[1]").unwrap();
        assert_eq!(ids(&limited), ["4"], "known actions count, too");
    }

    #[test]
    fn the_oldest_builds_beyond_the_number_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::new(dir.path(), u64::MAX);
        history.save(&[build("1"), build("2")]).unwrap();
        for (id, seconds) in [("1", 30), ("2", 20)] {
            age(&history, id, seconds);
        }
        history.max_files = 2;
        history.save(&[build("3")]).unwrap();
        assert_eq!(ids(&history), ["2", "3"]);
    }

    #[test]
    fn records_beyond_a_quarter_of_the_limit_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), 400);
        history.save_evictions(&[b'x'; 100]).unwrap();
        history.save_evictions(&[b'x'; 101]).unwrap();
        assert_eq!(history.evictions().unwrap(), None);
    }

    #[test]
    fn clearing_removes_all_that_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        history.clear().unwrap();
        history.save(&[build("1")]).unwrap();
        history.save_known(b"[1]").unwrap();
        history.save_evictions(b"x").unwrap();
        history.clear().unwrap();
        assert!(!history.folder.exists());
    }

    #[test]
    fn damaged_and_partial_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        history
            .save(&[
                build("torn"),
                build("whole"),
                build("flipped"),
                build("empty"),
            ])
            .unwrap();
        let torn = fs::read(history.path_of("torn")).unwrap();
        fs::write(history.path_of("torn"), &torn[..torn.len() - 5]).unwrap();
        let mut flipped = fs::read(history.path_of("flipped")).unwrap();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(history.path_of("flipped"), flipped).unwrap();
        fs::write(history.path_of("empty"), "").unwrap();
        let partial = history.folder.join("x.build.new");
        fs::write(&partial, "x").unwrap();
        assert_eq!(ids(&history), ["whole"]);
        assert!(!partial.exists());
        assert!(!history.path_of("torn").exists());
    }

    #[test]
    fn an_odd_entry_does_not_hide_the_other_builds() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        history.save(&[build("one")]).unwrap();
        fs::create_dir(history.folder.join("zz.build")).unwrap();
        std::os::unix::fs::symlink("zz.build", history.folder.join("link.build")).unwrap();
        assert_eq!(ids(&history), ["one"]);
        let limited = History::new(dir.path(), 0);
        limited.save(&[]).unwrap();
        assert!(ids(&history).is_empty());
    }

    #[test]
    fn a_whole_file_that_cannot_be_parsed_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        history.save(&[build("one")]).unwrap();
        let other = history.path_of("other");
        history.write(&other, b"{\"head\": 1}").unwrap();
        assert_eq!(ids(&history), ["one"]);
        assert!(other.exists());
    }

    #[test]
    fn a_build_with_other_fields_than_those_of_this_release_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        let fields = br#"{"head": {"id": "old", "later": 1}, "targets": {"//:t": {"hits": 1}},
            "misses": [{"action": "a/1"}], "later": []}"#;
        history.write(&history.path_of("old"), fields).unwrap();
        let read = history.build("old").unwrap().unwrap();
        assert_eq!(read.targets["//:t"].hits, 1);
        assert_eq!(read.misses[0].action, "a/1");
    }

    #[test]
    fn the_records_of_explanations_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), u64::MAX);
        assert_eq!(history.evictions().unwrap(), None);
        history.save_evictions(b"\0binary\n").unwrap();
        history.save_known(b"[1]").unwrap();
        assert_eq!(history.evictions().unwrap().unwrap(), b"\0binary\n");
        assert_eq!(history.known::<Vec<u32>>().unwrap(), Some(vec![1]));
    }
}
