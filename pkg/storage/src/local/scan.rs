//! Filling the index from the disk, in the background, after the store has opened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use super::{core::Core, layout, layout::InstanceHash, verify};
use crate::{
    DigestFunction, Error, Result,
    index::{Key, Space},
};

/// How many threads look at folders at the same time: more than cores, since they wait for the disk.
const THREADS: usize = 4;

/// One folder `ab` with what its files are.
struct Folder {
    path: String,
    function: DigestFunction,
    space: Space,
}

/// Indexes everything, then hashes what is in doubt. Blocks until done or cancelled.
pub(super) fn run(core: &Arc<Core>) {
    let started = Instant::now();
    match scan(core) {
        Ok(()) if core.cancel.is_cancelled() => return,
        Ok(()) => {}
        Err(error) => {
            // Unknown blobs go on being looked up on the disk, so nothing is lost but speed.
            tracing::error!(%error, "scanning the data directory failed; it goes on unindexed");
            return;
        }
    }
    core.scanned.store(true, Relaxed);
    core.room.scan_done();
    tracing::info!(
        entries = core.index.count(),
        bytes = core.index.bytes(),
        in_doubt = core.index.in_doubt(),
        seconds = started.elapsed().as_secs_f64(),
        "data directory scanned"
    );
    verify::settle_doubts(core);
}

fn scan(core: &Core) -> Result<()> {
    let folders = folders(core)?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(folder) = folders.get(next.fetch_add(1, Relaxed)) {
            if core.cancel.is_cancelled() {
                break;
            }
            scan_folder(core, folder)?;
            // Uploads may wait for room, and there may be something to evict now.
            core.room.press();
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::Unavailable("a scanning thread failed".into())))
        })
    })
}

/// Every `ab` folder, those of one tree spread over the whole list.
fn folders(core: &Core) -> Result<Vec<Folder>> {
    let mut folders = Vec::new();
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
        for name in core.files.list(&format!("{}/{function}", layout::AC))? {
            let Some(instance) = parse_instance(&name) else {
                continue;
            };
            let number = core.instances.intern(&instance)?;
            add(
                &layout::ac_folder(function, &instance),
                function,
                Space::Ac(number),
            )?;
        }
    }
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

fn scan_folder(core: &Core, folder: &Folder) -> Result<()> {
    for inner in core.files.list(&folder.path)? {
        let inner = format!("{}/{inner}", folder.path);
        for name in core.files.list(&inner)? {
            let path = format!("{inner}/{name}");
            if let Some(key) = layout::key_of(&name, folder.function, folder.space) {
                scan_file(core, &key, &path)?;
            } else {
                tracing::debug!(path, "not a blob; left alone");
            }
        }
    }
    Ok(())
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
        .insert_new(key, meta.size, meta.atime_ms, in_doubt)
    {
        core.room.scanned(meta.size);
    }
    Ok(())
}
