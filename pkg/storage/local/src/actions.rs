//! Action results, each in a file that begins with a checksum.

use std::{fs, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_limits::Budget;
use prost::Message as _;
use reapi::{shapes::Shaped as _, v2::ActionResult};

use super::{
    LocalStore,
    disk::{Disk, Lookup, now_ms},
    instances::{DROPPED, InstanceNumber, MAX},
    layout::{self, InstanceHash},
};
use crate::index::{Key, Use};
use gorego_storage::{
    ActionCache, CachedResult, Digest, DigestFunction, Error, Result,
    decoded::{MAX_DECODED_RESULT, result_memory},
    read_at,
};

/// The beginning of every action result's file; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"gorego\x00\x01";
const HEADER: usize = MAGIC.len() + 32;

#[async_trait]
impl ActionCache for LocalStore {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let (disk, action) = (&self.disk, *action);
        let hash = layout::short_hash(instance);
        let key = move |disk: &Disk| Some(Key::ac(&action, disk.instances.find(&hash)?.number));
        let path = layout::action_path(&action, &hash);
        let known = disk.scanned.lookup(|| {
            let key = key(disk)?;
            disk.index.touch(&key, None, now_ms(), Use::default())
        });
        let size = match known {
            Lookup::Hit(hit) => hit.size,
            Lookup::Miss => return Err(Error::NoResult(action)),
            Lookup::Unknown => {
                let path = path.clone();
                let size = disk.run(move |disk| disk.files.size(&path)).await?;
                size.ok_or(Error::NoResult(action))?
            }
        };
        // Without the header the memory of most results is too small to be counted, which would take locks.
        let encoded = size.saturating_sub(HEADER as u64);
        let permit = memory.reserve(result_memory(encoded)).await;
        let permit = permit.map_err(Error::no_memory)?;
        let load = move |disk: &Arc<Disk>| {
            let result = disk.load_result(key(disk).as_ref(), &path)?;
            if disk.options.force_update_atime && result.is_some() {
                disk.files.set_atime(&path, now_ms())?;
            }
            result.map(Box::new).ok_or(Error::NoResult(action))
        };
        let result = disk.run(load).await?;
        Ok(CachedResult { result, permit })
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let disk = &self.disk;
        let hash = layout::short_hash(instance);
        let instance = match disk.instances.find(&hash) {
            Some(instance) => instance,
            None => disk.run(move |disk| disk.name_instance(&hash)).await?,
        };
        let key = Key::ac(action, instance.number);
        let content = [Bytes::from(encode(&result))];
        let size = content.iter().map(|content| content.len() as u64).sum();
        let path = layout::action_path(action, &hash);
        let write = move |disk: &Disk| {
            let publish = |tmp: &str| disk.publish(&key, size, tmp, &path);
            disk.files.write_new(&content, publish).map(drop)
        };
        let what = format!("action result {action}");
        disk.write(size, what, write).await
    }
}

impl Disk {
    /// Returns a number for a new instance name. If all are taken, drops names that have few results and
    /// were not used lately. Blocks.
    fn name_instance(&self, hash: &InstanceHash) -> Result<InstanceNumber> {
        let _turn = self.instances.naming.lock();
        let intern = || self.instances.intern(hash);
        let mut interned = intern();
        // Before the scan has ended, the index does not have all results.
        if interned.is_none() && self.is_scanned() {
            let release = || self.instances.release_unused(|| self.index.instances());
            release();
            interned = intern();
            if interned.is_none() {
                self.evict_instances(DROPPED);
                release();
                interned = intern();
            }
        }
        interned.ok_or_else(|| {
            Error::Unavailable(format!(
                "all {MAX} instance names of the action cache are taken, and none can be evicted \
                 before the data directory is scanned"
            ))
        })
    }

    /// Reads a result. Quarantines a corrupt or unreadable one, and returns `None` for it. Blocks.
    pub(super) fn load_result(
        &self,
        key: Option<&Key>,
        path: &str,
    ) -> Result<Option<ActionResult>> {
        let (file, result) = match self.files.open_read(path) {
            Ok(Some((file, meta))) => {
                let result = read_result(&file, meta.size, self.files.path(path))?;
                (Some(file), result)
            }
            Ok(None) => {
                if let Some(key) = key {
                    self.forget(key, path, None)?;
                }
                return Ok(None);
            }
            Err(error) if error.is_unreadable() => (None, None),
            Err(error) => return Err(error),
        };
        if let (None, Some(key)) = (&result, key) {
            self.quarantine_opened(key, path, file.as_ref(), "no valid action result")?;
        }
        Ok(result)
    }
}

/// Reads the result in an open file; `None` if it is corrupt or unreadable.
fn read_result(file: &fs::File, size: u64, path: PathBuf) -> Result<Option<ActionResult>> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    match read_at(file, 0, size).map_err(|error| Error::io("reading", path, error)) {
        Ok(content) => Ok(decode(content)),
        Err(error) if error.is_unreadable() => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(result: &ActionResult) -> Vec<u8> {
    let payload = result.encode_to_vec();
    let mut content = Vec::with_capacity(HEADER + payload.len());
    content.extend_from_slice(MAGIC);
    content.extend_from_slice(DigestFunction::Sha256.digest(&payload).hash());
    content.extend_from_slice(&payload);
    content
}

/// Decodes the result in a file's content; `None` if it is corrupt, or takes more memory than any result may.
/// Inline outputs are not copied.
fn decode(mut content: Bytes) -> Option<ActionResult> {
    let checksum = content.strip_prefix(MAGIC)?.get(..HEADER - MAGIC.len())?;
    let payload = content.get(HEADER..)?;
    if DigestFunction::Sha256.digest(payload).hash() != checksum {
        return None;
    }
    ActionResult::decode_within(content.split_off(HEADER), MAX_DECODED_RESULT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corrupt_or_truncated_action_result_is_none() {
        let result = ActionResult {
            exit_code: 3,
            stdout_raw: "out".into(),
            ..Default::default()
        };
        let content = encode(&result);
        assert_eq!(decode(content.clone().into()), Some(result));
        for at in 0..content.len() {
            assert_eq!(decode(content[..at].to_vec().into()), None);
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(damaged.into()), None);
        }
    }

    #[test]
    fn an_action_result_that_the_disk_cannot_read_is_none() {
        // Reading it is an I/O error, as on a broken disk.
        let broken = fs::File::open("/proc/self/mem").unwrap();
        assert_eq!(
            read_result(&broken, 1000, "ac/broken".into()).unwrap(),
            None
        );
    }

    #[test]
    fn an_action_result_that_decodes_to_too_much_memory_is_none() {
        let symlink = reapi::v2::OutputSymlink::default();
        let result = |count| ActionResult {
            output_symlinks: vec![symlink.clone(); count],
            ..Default::default()
        };
        assert_eq!(decode(encode(&result(1000)).into()), Some(result(1000)));
        assert_eq!(decode(encode(&result(1_000_000)).into()), None);
    }
}
