//! The builds on the disk: a file for each build, and one each for the known actions, the evictions and the redaction.
//!
//! A file begins with a line with the checksum of the rest, and is renamed into place. A truncated or corrupt file of a
//! build is removed; of the others, it is ignored until it is written again. A whole file that this release cannot
//! parse may be of another one, and stays within the limit.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use gorego_storage::DigestFunction;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::{Build, records::MAX_BUILDS};

/// The folder in the data directory.
const FOLDER: &str = "builds";
/// The end of the names of files of builds.
const BUILD: &str = ".build";
/// The file of known actions.
const KNOWN: &str = "actions";
/// The file of evictions.
const EVICTIONS: &str = "evictions";
/// The file with the fingerprint of the redaction under which the builds were saved.
const REDACTION: &str = "redaction";
/// The files that are no builds, and not removed one by one.
const RECORDS: [&str; 3] = [KNOWN, EVICTIONS, REDACTION];
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
    /// The fingerprint of the redaction that earlier builds may lack. They are not read until they have it.
    unredacted: Arc<Mutex<Option<String>>>,
}

impl History {
    /// Keeps the builds in the data directory `dir`.
    pub(crate) fn new(dir: &Path, max_bytes: u64) -> Self {
        Self {
            folder: dir.join(FOLDER),
            max_bytes,
            max_files: MAX_BUILDS,
            unredacted: Arc::default(),
        }
    }

    /// Hides the values in builds that were saved under a redaction with another fingerprint. Removes those builds that
    /// cannot be read or written. If some can be neither, [`Self::save`] tries again, and none are read before.
    pub(crate) fn redact(&self, fingerprint: &str) -> io::Result<()> {
        *self.unredacted.lock() = Some(fingerprint.to_owned());
        self.redact_earlier()
    }

    fn redact_earlier(&self) -> io::Result<()> {
        let mut unredacted = self.unredacted.lock();
        let Some(fingerprint) = &*unredacted else {
            return Ok(());
        };
        let path = self.folder.join(REDACTION);
        if content_of(&path)?.is_none_or(|saved| saved != fingerprint.as_bytes()) {
            self.remove_partial()?;
            for file in self.files(BUILD)? {
                if self.hide_values(&file).is_err() {
                    fs::remove_file(&file.path)?;
                }
            }
            // Without it, the next start hides all values again.
            let written = self.write(&path, fingerprint.as_bytes());
            skipped(written, "failed to record the redaction of builds", &path);
        }
        *unredacted = None;
        Ok(())
    }

    /// Hides the values in a build. Its file keeps its age.
    fn hide_values(&self, file: &BuildFile) -> io::Result<()> {
        let content = content_of(&file.path)?.ok_or(io::ErrorKind::InvalidData)?;
        let mut build: Build = serde_json::from_slice(&content)?;
        if !build.hide_values() {
            return Ok(());
        }
        self.write(&file.path, &serde_json::to_vec(&build)?)?;
        let written = fs::File::options().write(true).open(&file.path)?;
        written.set_modified(file.modified)
    }

    /// Reads the builds, the newest first, until `see` returns `false`. Removes those that are damaged or beyond
    /// the limit, and what a crash left. One that cannot be read or parsed is logged and skipped.
    pub(crate) fn load(&self, mut see: impl FnMut(Build) -> bool) -> io::Result<()> {
        if self.unredacted.lock().is_some() {
            return Ok(());
        }
        self.remove_partial()?;
        self.trim()?;
        for BuildFile { path, .. } in self.files(BUILD)?.into_iter().rev() {
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

    /// Reads the builds with `part` in their JSON, the newest first, until `see` returns `false`. Skips those that cannot
    /// be read.
    pub(crate) fn search(&self, part: &str, mut see: impl FnMut(&Build) -> bool) -> io::Result<()> {
        if self.unredacted.lock().is_some() {
            return Ok(());
        }
        for BuildFile { path, .. } in self.files(BUILD)?.into_iter().rev() {
            let content = content_of(&path).ok().flatten();
            let content = content.and_then(|content| String::from_utf8(content).ok());
            let Some(content) = content.filter(|content| content.contains(part)) else {
                continue;
            };
            if serde_json::from_str(&content).is_ok_and(|build| !see(&build)) {
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

    /// Writes builds. Meanwhile and afterwards removes the oldest beyond the limit, even if not all can be written.
    /// Returns the ids of those.
    pub(crate) fn save(&self, builds: &[Build]) -> io::Result<Vec<String>> {
        self.redact_earlier()?;
        let (mut removed, mut unchecked) = (Vec::new(), 0);
        let written = builds.iter().try_for_each(|build| {
            let content = serde_json::to_vec(build)?;
            unchecked += content.len() as u64;
            if unchecked > self.max_bytes / 8 {
                removed.extend(self.trim()?);
                unchecked = 0;
            }
            self.write(&self.path_of(&build.head.id), &content)
        });
        removed.extend(self.trim()?);
        written?;
        // Some may have been written again.
        removed.retain(|id| !self.path_of(id).exists());
        Ok(removed)
    }

    /// Reads the known actions.
    pub(crate) fn known<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        read(&self.folder.join(KNOWN))
    }

    /// Writes the known actions, encoded. Returns the ids of the builds that were removed for them.
    pub(crate) fn save_known(&self, encoded: &[u8]) -> io::Result<Vec<String>> {
        self.save_records(KNOWN, encoded)
    }

    /// Reads the evictions, encoded.
    pub(crate) fn evictions(&self) -> io::Result<Option<Vec<u8>>> {
        content_of(&self.folder.join(EVICTIONS))
    }

    /// Writes the evictions, encoded. Returns the ids of the builds that were removed for them.
    pub(crate) fn save_evictions(&self, encoded: &[u8]) -> io::Result<Vec<String>> {
        self.save_records(EVICTIONS, encoded)
    }

    /// Writes records of explanations, then removes the oldest builds beyond the limit. Keeps none that would take more
    /// than a quarter of it.
    fn save_records(&self, name: &str, encoded: &[u8]) -> io::Result<Vec<String>> {
        let path = self.folder.join(name);
        if encoded.len() as u64 > self.max_bytes / 4 {
            return remove_if_present(&path).map(|_| Vec::new());
        }
        self.write(&path, encoded)?;
        self.trim()
    }

    /// Removes all files of builds, and the folder unless it has others. Returns the number of files.
    pub(crate) fn clear(&self) -> io::Result<usize> {
        self.remove_partial()?;
        let mut removed = 0;
        let records = RECORDS.map(|name| self.folder.join(name));
        let builds = self.files(BUILD)?.into_iter().map(|file| file.path);
        for path in builds.chain(records) {
            removed += usize::from(remove_if_present(&path)?);
        }
        let _ = fs::remove_dir(&self.folder);
        Ok(removed)
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

    /// Removes the oldest builds beyond the limit. Returns their ids, as far as they can be read.
    fn trim(&self) -> io::Result<Vec<String>> {
        let files = self.files(BUILD)?;
        let mut ids = Vec::new();
        let records = RECORDS.map(|name| fs::symlink_metadata(self.folder.join(name)));
        let records = records.iter().flatten().map(disk_bytes);
        let mut total: u64 = files.iter().map(|file| file.bytes).chain(records).sum();
        for (remaining, file) in (1..=files.len()).rev().zip(files) {
            if total <= self.max_bytes && remaining <= self.max_files {
                break;
            }
            let build = read::<Build>(&file.path).ok().flatten();
            ids.extend(build.map(|build| build.head.id));
            let removed = fs::remove_file(&file.path);
            if skipped(removed, "failed to remove an old build", &file.path).is_some() {
                total -= file.bytes;
            }
        }
        Ok(ids)
    }

    /// Removes partly written files, which a crash left. Nothing must be written meanwhile.
    fn remove_partial(&self) -> io::Result<()> {
        for BuildFile { path, .. } in self.files(PARTIAL)? {
            let _ = fs::remove_file(&path);
        }
        Ok(())
    }

    /// Lists the files whose names have this end, the oldest first.
    fn files(&self, end: &str) -> io::Result<Vec<BuildFile>> {
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
            if entry.file_name().to_string_lossy().ends_with(end) {
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

/// Returns whether there was a file.
fn remove_if_present(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
