//! The scan that fills the index from the disk, in the background, after the store has opened.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use futures::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{
    disk::Disk,
    files::Files,
    layout::{self, InstanceHash},
    verify,
};
use crate::index::{Key, Space};
use gorego_storage::{DigestFunction, Error, Result};

/// The pause before a retry of the folders that could not be read.
const RETRY: Duration = Duration::from_mins(1);
/// The number of folders scanned at once: more than cores, since the disk is slow.
const AT_ONCE: usize = 4;
/// The counts of all folders that are tried without holding the lock.
const COUNTS: usize = 3;

/// The folders of all blobs of a digest function, or of all results of an instance too.
struct Tree {
    path: String,
    function: DigestFunction,
    instance: Option<InstanceHash>,
}

/// One folder `ab` with the function and space of its files.
struct Folder {
    path: String,
    function: DigestFunction,
    space: Space,
}

/// Indexes everything, then hashes unverified blobs. Retries folders that cannot be read for as long as
/// it takes: until they are indexed, lookups of unknown blobs go to the disk.
pub(super) async fn run(disk: Arc<Disk>) {
    let started = Instant::now();
    let mut left = None;
    while let Err(error) = scan_all(&disk, &mut left).await {
        tracing::error!(%error, "failed to scan the data directory; retrying in a minute");
        if timeout(RETRY, disk.cancel.cancelled()).await.is_ok() {
            return;
        }
    }
    if disk.cancel.is_cancelled() {
        return;
    }
    disk.room.press();
    tracing::info!(
        entries = disk.index.count(),
        bytes = disk.index.bytes(),
        unverified = disk.index.unverified(),
        seconds = started.elapsed().as_secs_f64(),
        "data directory scanned"
    );
    let verify = |disk: &Arc<Disk>| {
        disk.measure_leases();
        verify::verify_all(disk);
        Ok(())
    };
    let _ = disk.run(verify).await;
}

/// Indexes the folders that are `left`, at first all, and counts them when none is left.
async fn scan_all(disk: &Arc<Disk>, left: &mut Option<Vec<Arc<Folder>>>) -> Result<()> {
    let folders = match left.take() {
        Some(left) => left,
        None => disk.run(|disk| folders(disk)).await?,
    };
    let scans = stream::iter(folders).map(|folder| scan(disk, folder));
    let scanned: Vec<_> = scans.buffer_unordered(AT_ONCE).collect().await;
    let (failed, errors): (Vec<_>, Vec<_>) = scanned.into_iter().flatten().unzip();
    *left = Some(failed);
    if let Some(error) = errors.into_iter().next() {
        return Err(error);
    }
    if disk.cancel.is_cancelled() {
        return Ok(());
    }
    let finish = |disk: &Arc<Disk>| {
        disk.count_folders()?;
        // Folders go with their last file only once all are counted.
        disk.scanned.set();
        Ok(())
    };
    disk.run(finish).await
}

/// Indexes a folder; returns it with the error if it could not be read.
async fn scan(disk: &Arc<Disk>, folder: Arc<Folder>) -> Option<(Arc<Folder>, Error)> {
    if disk.cancel.is_cancelled() {
        return None;
    }
    let scanned = Arc::clone(&folder);
    let scanned = disk.run(move |disk| scan_folder(disk, &scanned)).await;
    // Uploads may wait for room, and there may be something to evict now.
    disk.room.press();
    Some((folder, scanned.err()?))
}

/// Returns every `ab` folder, and numbers the instances that have results. Blocks.
fn folders(disk: &Disk) -> Result<Vec<Arc<Folder>>> {
    let (mut folders, mut unnumbered) = (Vec::new(), 0);
    for tree in trees(&disk.files)? {
        let space = match &tree.instance {
            None => Some(Space::Cas),
            Some(_) if disk.files.remove_empty(&tree.path) => continue,
            Some(hash) => disk.instances.intern(hash).map(|it| Space::Ac(it.number)),
        };
        let Some(space) = space else {
            unnumbered += 1;
            continue;
        };
        let folder = |path| Folder {
            path,
            function: tree.function,
            space,
        };
        let below = subfolders(&disk.files, &tree.path)?.into_iter();
        folders.extend(below.map(folder).map(Arc::new));
    }
    if unnumbered > 0 {
        tracing::warn!(
            unnumbered,
            "too many instance names; the action results of some are not served"
        );
    }
    Ok(folders)
}

/// Returns the trees of all functions and instances. Blocks.
fn trees(files: &Files) -> Result<Vec<Tree>> {
    let mut trees = Vec::new();
    for function in DigestFunction::ALL {
        let tree = |path, instance| Tree {
            path,
            function,
            instance,
        };
        trees.push(tree(layout::cas_folder(function), None));
        let names = files.list(&format!("{}/{function}", layout::AC))?;
        let instances = names
            .iter()
            .filter_map(|name| HEXLOWER.decode(name.as_bytes()).ok()?.try_into().ok());
        trees.extend(instances.map(|hash| tree(layout::ac_folder(function, &hash), Some(hash))));
    }
    Ok(trees)
}

/// Returns the paths of the folders with two letters in a folder. Blocks.
fn subfolders(files: &Files, path: &str) -> Result<Vec<String>> {
    let names = files.list(path)?.into_iter();
    let names = names.filter(|name| name.len() == 2);
    Ok(names.map(|name| format!("{path}/{name}")).collect())
}

impl Disk {
    /// Counts the folders between the roots and the files. Changes of folders wait for that only if one of them
    /// disturbed each of the first counts. Blocks.
    pub(super) fn count_folders(&self) -> Result<()> {
        for _ in 0..COUNTS {
            let before = *self.files.folder_changes.lock();
            let count = folder_count(&self.files)?;
            let changes = self.files.folder_changes.lock();
            if *changes == before {
                self.room.all_scanned(count);
                return Ok(());
            }
        }
        let _changes = self.files.folder_changes.lock();
        self.room.all_scanned(folder_count(&self.files)?);
        Ok(())
    }
}

fn folder_count(files: &Files) -> Result<u64> {
    let mut count = 0;
    for tree in trees(files)? {
        count += u64::from(tree.instance.is_some());
        for folder in subfolders(files, &tree.path)? {
            count += 1 + subfolders(files, &folder)?.len() as u64;
        }
    }
    Ok(count)
}

fn scan_folder(disk: &Disk, folder: &Folder) -> Result<()> {
    for inner in disk.files.list(&folder.path)? {
        let inner = format!("{}/{inner}", folder.path);
        for name in disk.files.list(&inner)? {
            let path = format!("{inner}/{name}");
            let key = layout::key_of(&name, folder.function, folder.space);
            if let Some(key) = key.filter(|_| layout::belongs(&path)) {
                scan_file(disk, &key, &path)?;
            } else {
                tracing::debug!(path, "not a blob; left alone");
            }
        }
        disk.files.remove_empty(&inner);
    }
    disk.files.remove_empty(&folder.path);
    Ok(())
}

fn scan_file(disk: &Disk, key: &Key, path: &str) -> Result<()> {
    let _changing = disk.lock(key);
    let Some(meta) = disk.files.stat_file(path)? else {
        return Ok(());
    };
    if meta.size == 0 {
        // No empty file is ever stored: a loss of power left this.
        return disk.files.unlink(path);
    }
    disk.index_file(key, meta.size, meta.atime_ms, meta.mtime_ms);
    disk.counters.scanned.fetch_add(1, Relaxed);
    Ok(())
}
