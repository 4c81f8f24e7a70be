//! Action results: a file each, with a checksum in front.

use std::{
    fs,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_limits::Budget;
use prost::Message as _;
use reapi::{shapes::Shaped as _, v2::ActionResult};

use super::{
    LocalStore,
    blobs::disk_full,
    core::{Core, blocking, now_ms},
    files::{Files, write_at},
    full::Attempts,
    instances::Interned,
    layout::{self, InstanceHash},
    scanned::Known,
};
use crate::index::{Key, Use};
use gorego_storage::{
    ActionCache, CachedResult, Digest, DigestFunction, Error, Result,
    decoded::{MAX_DECODED_RESULT, result_memory},
    read_at,
};

/// Begins every action result's file; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"gorego\x00\x01";
const HEADER: usize = MAGIC.len() + 32;

#[async_trait]
impl ActionCache for LocalStore {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let core = &self.core;
        let hash = layout::instance_hash(instance);
        let known = core.scanned.known(|| {
            let key = Key::ac(action, core.instances.number(&hash)?);
            core.index.touch(&key, None, now_ms(), Use::default())
        });
        let size = match known {
            Known::Here(seen) => seen.size,
            Known::Nowhere => return Err(Error::NoResult(*action)),
            Known::Unseen => {
                let (core, path) = (Arc::clone(core), layout::action_path(action, &hash));
                let found = blocking(move || core.files.stat(&path)).await?;
                found.ok_or(Error::NoResult(*action))?.size
            }
        };
        let permit = memory.reserve(result_memory(size)).await;
        let permit = permit.map_err(Error::no_memory)?;
        let (core, action) = (Arc::clone(core), *action);
        let result = blocking(move || core.read_action(&action, &hash)).await?;
        let result = result.ok_or(Error::NoResult(action))?;
        Ok(CachedResult { result, permit })
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let core = &self.core;
        let hash = layout::instance_hash(instance);
        let instance = core.intern(&hash).await?;
        let content = Bytes::from(encode(&result));
        let size = content.len() as u64;
        let broken = Arc::default();
        let mut attempts = Attempts::new(core, &broken);
        loop {
            let room = core
                .room
                .reserve(size, &format!("action result {action}"), &broken)
                .await?;
            let (writer, action, content) = (Arc::clone(core), *action, content.clone());
            let key = Key::ac(&action, instance.number);
            let written = blocking(move || {
                // Given back before a wait for eviction, since it counts as a file.
                let _room = room;
                writer.write_action(&key, &action, &hash, content)
            });
            match written.await {
                Err(error) if error.is_no_space() => {
                    if !attempts.again(size).await {
                        return Err(disk_full(&action, &error));
                    }
                }
                other => return other,
            }
        }
    }
}

impl Core {
    /// A number for the instance, for as long as it is about to be used.
    async fn intern(self: &Arc<Self>, hash: &InstanceHash) -> Result<Interned> {
        if let Some(interned) = self.instances.find(hash) {
            return Ok(interned);
        }
        let (core, hash) = (Arc::clone(self), *hash);
        blocking(move || core.name_instance(&hash)).await
    }

    /// Reads a result; a broken one is removed and is none. Blocks.
    fn read_action(
        &self,
        action: &Digest,
        instance: &InstanceHash,
    ) -> Result<Option<ActionResult>> {
        let path = layout::action_path(action, instance);
        let key = self
            .instances
            .number(instance)
            .map(|number| Key::ac(action, number));
        let result = match self.files.open_read(&path) {
            Ok(Some(file)) => read_result(&self.files, &file, &path)?,
            Ok(None) => {
                if let Some(key) = key {
                    self.forget_action(&key, &path)?;
                }
                return Ok(None);
            }
            Err(error) if error.is_unreadable() => None,
            Err(error) => return Err(error),
        };
        if self.force_update_atime && result.is_some() {
            self.files.set_atime(&path, now_ms())?;
        }
        if result.is_none()
            && let Some(key) = key
        {
            self.check_action(&key, &path)?;
        }
        Ok(result)
    }

    /// Quarantines an action result that is damaged. Blocks.
    pub(super) fn check_action(&self, key: &Key, path: &str) -> Result<()> {
        // Under the lock, since a newer result may replace the file at any moment.
        let _changing = self.lock(key);
        if self.reads_broken(path)? {
            tracing::warn!(path, "action result is damaged");
            self.quarantine(key, path)?;
        }
        Ok(())
    }

    fn reads_broken(&self, path: &str) -> Result<bool> {
        match self.files.open_read(path) {
            Ok(Some(file)) => Ok(read_result(&self.files, &file, path)?.is_none()),
            Ok(None) => Ok(false),
            Err(error) => error.is_unreadable().then_some(true).ok_or(error),
        }
    }

    fn forget_action(&self, key: &Key, path: &str) -> Result<()> {
        let _changing = self.lock(key);
        if self.files.stat(path)?.is_some() {
            return Ok(());
        }
        if self.files.is_there(path)? {
            tracing::warn!(
                path,
                "something that is no regular file is in the place of a result"
            );
            return self.quarantine(key, path);
        }
        self.index.remove(key);
        Ok(())
    }

    fn write_action(
        &self,
        key: &Key,
        action: &Digest,
        instance: &InstanceHash,
        content: Bytes,
    ) -> Result<()> {
        let size = content.len() as u64;
        let (tmp, file) = self.files.create_tmp()?;
        let written = write_at(&file, &[content], 0)
            .map_err(|errno| self.files.error("writing", &tmp, errno))
            .and_then(|()| self.files.seal(&tmp, &file, false))
            .and_then(|()| {
                let _open = self.open()?;
                let _changing = self.lock(key);
                self.install(&tmp, &layout::action_path(action, instance))?;
                self.index.insert(key, size, now_ms());
                self.written.fetch_add(1, Relaxed);
                Ok(())
            });
        if written.is_err() {
            self.files.unlink(&tmp)?;
        }
        written
    }
}

/// The result in an open file; `None` when it is not whole, or the disk cannot read it any more.
fn read_result(files: &Files, file: &fs::File, path: &str) -> Result<Option<ActionResult>> {
    let read = || {
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        read_at(file, 0, size)
    };
    match read().map_err(|error| Error::io("reading", files.path(path), error)) {
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

/// The result in a file's content; `None` when it is not whole, or takes more memory than any
/// result may. What the result carries inline stays where it is in `content`.
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
    use crate::SyncMode;

    #[test]
    fn a_damaged_or_torn_action_result_is_none() {
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
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path(), SyncMode::None).unwrap();
        // Reading it is an I/O error, as on a broken disk.
        let broken = fs::File::open("/proc/self/mem").unwrap();
        assert_eq!(read_result(&files, &broken, "ac/broken").unwrap(), None);
    }

    #[test]
    fn an_action_result_that_unfolds_to_too_much_memory_is_none() {
        let symlink = reapi::v2::OutputSymlink::default();
        let result = |count| ActionResult {
            output_symlinks: vec![symlink.clone(); count],
            ..Default::default()
        };
        assert_eq!(decode(encode(&result(1000)).into()), Some(result(1000)));
        assert_eq!(decode(encode(&result(1_000_000)).into()), None);
    }
}
