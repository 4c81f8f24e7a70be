//! Filling the index from the disk, in the background, after the store has opened.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    core::{Core, blocking, now_ms},
    files::Files,
    instances::Instances,
    layout::{self, InstanceHash},
    verify,
};
use crate::index::{Key, Space};
use gorego_storage::{DigestFunction, Error, Result};

/// How long to wait before folders that could not be read are tried again.
const RETRY: Duration = Duration::from_mins(1);
/// How many threads look at folders at the same time: more than cores, since they wait for the disk.
const THREADS: usize = 4;

/// One folder `ab` with what its files are.
struct Folder {
    path: String,
    function: DigestFunction,
    space: Space,
}

/// Indexes everything, then hashes what is in doubt. Folders that cannot be read are tried again
/// and again: until they are known, the disk is asked about unknown blobs.
pub(super) async fn run(core: Arc<Core>) {
    let started = Instant::now();
    let mut left = None;
    loop {
        let (worker, folders) = (Arc::clone(&core), left.take());
        match blocking(move || scan(&worker, folders)).await {
            _ if core.cancel.is_cancelled() => return,
            Ok(failed) if failed.is_empty() => break,
            Ok(failed) => left = Some(failed),
            Err(error) => tracing::error!(%error, "scanning the data directory failed"),
        }
        tokio::select! {
            () = core.cancel.cancelled() => return,
            () = sleep(RETRY) => {}
        }
    }
    core.files.folders.scan_done();
    core.scanned.set();
    core.room.scan_done();
    tracing::info!(
        entries = core.index.count(),
        bytes = core.index.bytes(),
        in_doubt = core.index.in_doubt(),
        seconds = started.elapsed().as_secs_f64(),
        "data directory scanned"
    );
    let settle = move || {
        verify::settle_doubts(&core);
        Ok(())
    };
    let _ = blocking(settle).await;
}

/// Indexes these folders, or all of them, and gives back those that could not be read. Blocks.
fn scan(core: &Core, some: Option<Vec<Folder>>) -> Result<Vec<Folder>> {
    let folders = Mutex::new(match some {
        Some(folders) => folders,
        None => folders(core)?,
    });
    let failed = Mutex::new(Vec::new());
    let next = || lock(&folders).pop();
    let work = || {
        while let Some(folder) = next().filter(|_| !core.cancel.is_cancelled()) {
            if let Err(error) = scan_folder(core, &folder) {
                tracing::error!(%error, "scanning goes on without this folder for now");
                lock(&failed).push(folder);
            }
            // Uploads may wait for room, and there may be something to evict now.
            core.room.press();
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(thread::ScopedJoinHandle::join)
    })
    .map_err(|_| Error::Unavailable("a scanning thread failed".into()))?;
    Ok(failed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn lock(folders: &Mutex<Vec<Folder>>) -> MutexGuard<'_, Vec<Folder>> {
    folders.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every `ab` folder, those of one tree spread over the whole list.
fn folders(core: &Core) -> Result<Vec<Folder>> {
    let (mut folders, mut trees) = (Vec::new(), Vec::new());
    let mut add = |tree: &str, function, space| -> Result<()> {
        let mut names = core.files.list(tree)?;
        names.retain(|name| name.len() == 2);
        folders.extend(names.into_iter().map(|name| {
            let path = format!("{tree}/{name}");
            Folder {
                path,
                function,
                space,
            }
        }));
        Ok(())
    };
    for function in DigestFunction::ALL {
        add(&layout::cas_folder(function), function, Space::Cas)?;
        for instance in instances_of(&core.files, function)? {
            let tree = layout::ac_folder(function, &instance);
            let Some(number) = core.instances.number(&instance) else {
                continue;
            };
            add(&tree, function, Space::Ac(number))?;
            trees.push(tree);
        }
    }
    trees.retain(|tree| !core.files.remove_empty(tree));
    count(core, &trees);
    Ok(folders)
}

fn parse_instance(name: &str) -> Option<InstanceHash> {
    if name.len() != size_of::<InstanceHash>() * 2 || !name.is_ascii() {
        return None;
    }
    let mut hash = InstanceHash::default();
    for (byte, at) in hash.iter_mut().zip((0..name.len()).step_by(2)) {
        *byte = u8::from_str_radix(name.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// The instances that have a folder for action results, numbered. Blocks.
pub(super) fn instances(files: &Files) -> Result<Instances> {
    let instances = Instances::default();
    for function in DigestFunction::ALL {
        for hash in instances_of(files, function)? {
            if files.remove_empty(&layout::ac_folder(function, &hash)) {
                continue;
            }
            if instances.intern(&hash, || None).is_none() {
                tracing::warn!(
                    "too many instance names; the action results of some are left alone"
                );
                return Ok(instances);
            }
        }
    }
    Ok(instances)
}

pub(super) fn instances_of(files: &Files, function: DigestFunction) -> Result<Vec<InstanceHash>> {
    let names = files.list(&format!("{}/{function}", layout::AC))?;
    Ok(names
        .iter()
        .filter_map(|name| parse_instance(name))
        .collect())
}

fn scan_folder(core: &Core, folder: &Folder) -> Result<()> {
    // Counted at the end, since a folder that cannot be read is scanned once more.
    let mut found = Vec::new();
    for inner in core.files.list(&folder.path)? {
        let inner = format!("{}/{inner}", folder.path);
        let names = core.files.list(&inner)?;
        let empty = names.is_empty();
        for name in names {
            let path = format!("{inner}/{name}");
            let key = layout::key_of(&name, folder.function, folder.space);
            if let Some(key) = key.filter(|_| layout::belongs(&path)) {
                scan_file(core, &key, &path)?;
            } else {
                tracing::debug!(path, "not a blob; left alone");
            }
        }
        if !empty || !core.files.remove_empty(&inner) {
            found.push(inner);
        }
    }
    if !found.is_empty() || !core.files.remove_empty(&folder.path) {
        found.push(folder.path.clone());
    }
    count(core, &found);
    Ok(())
}

fn count(core: &Core, found: &[String]) {
    let old = found.iter().filter(|path| core.files.folders.found(path));
    core.room.scanned_folders(old.count() as u64);
}

fn scan_file(core: &Core, key: &Key, path: &str) -> Result<()> {
    let _changing = core.lock(key);
    let Some(meta) = core.files.stat(path)? else {
        return Ok(());
    };
    if meta.size == 0 {
        // Nothing empty is ever stored: a loss of power left this.
        return core.files.unlink(path);
    }
    let in_doubt = key.space == Space::Cas && meta.mtime_ms >= core.doubt_from_ms;
    if core
        .index
        .insert_found(key, meta.size, meta.atime_ms.min(now_ms()), in_doubt)
    {
        core.room.scanned(meta.size);
    }
    Ok(())
}
