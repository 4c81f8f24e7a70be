//! Files of actions that become blobs.

use std::{ffi::OsStr, fs, os::fd::AsFd as _, os::fd::OwnedFd, sync::Arc};

use super::{
    disk::Disk,
    files::{Meta, copy, meta_of},
    write::{UPLOAD, check_size},
};
use crate::index::Form;
use gorego_storage::{Adopt, Digest, DigestFunction, Error, Hasher, Result, hash_file};

/// The name of an adopted file in errors.
const OUTPUT: &str = "an output of an action";

/// A file of an action's directory on its way into the store.
#[derive(Clone)]
struct Output {
    dir: Arc<OwnedFd>,
    name: Arc<OsStr>,
    file: Arc<fs::File>,
    /// Its status when it was opened.
    meta: Meta,
    digest: Digest,
}

impl Disk {
    /// Stores a file as a blob, and returns its digest. Moves it if that is permitted and possible.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        function: DigestFunction,
        file: Adopt,
    ) -> Result<Digest> {
        let file = match file {
            Adopt::Move { dir, name } => {
                let name: Arc<OsStr> = name.into();
                let (from, hashed) = (Arc::clone(&dir), Arc::clone(&name));
                let hash = move |disk: &Arc<Self>| disk.hash_output(function, from, &hashed);
                if let Some(output) = self.run(hash).await?
                    && self.store_output(&output).await?
                {
                    return Ok(output.digest);
                }
                let name = name.as_ref().to_owned();
                Adopt::Move { dir, name }
            }
            copy @ Adopt::Copy(_) => copy,
        };
        self.copy_in(function, file).await
    }

    /// Hashes a file; `None` if it cannot be moved. Blocks.
    fn hash_output(
        &self,
        function: DigestFunction,
        dir: Arc<OwnedFd>,
        name: &Arc<OsStr>,
    ) -> Result<Option<Output>> {
        let file = Adopt::Move {
            dir: Arc::clone(&dir),
            name: name.as_ref().to_owned(),
        };
        let (file, stat) = file.open()?;
        let meta = Meta::of(&stat);
        if !self.files.is_movable(&meta) {
            return Ok(None);
        }
        let hashed = hash_file(function, &file, meta.size).map_err(Error::source)?;
        Ok(Some(Output {
            dir,
            name: Arc::clone(name),
            file: Arc::new(file),
            meta,
            digest: hashed.finish(),
        }))
    }

    /// Moves a file to the place of its blob, unless that is stored; `false` if it has to be copied.
    async fn store_output(self: &Arc<Self>, output: &Output) -> Result<bool> {
        let digest = &output.digest;
        if self.has(digest, UPLOAD).await? {
            return Ok(true);
        }
        check_size(digest, digest.size())?;
        let moved = output.clone();
        self.write(digest.size(), digest, move |disk| disk.move_output(&moved))
            .await
    }

    fn move_output(&self, output: &Output) -> Result<bool> {
        let Output { dir, name, .. } = output;
        let Some(tmp) = self.files.move_in(dir.as_fd(), name)? else {
            return Ok(false);
        };
        let stored = self.publish_output(output, &tmp);
        if !matches!(stored, Ok(true)) {
            self.files.move_back(&tmp, dir.as_fd(), name)?;
        }
        stored
    }

    /// Publishes a moved file; `false` if it is not the one that was hashed.
    fn publish_output(&self, output: &Output, tmp: &str) -> Result<bool> {
        let failed = |error| Error::io("adopting", self.files.path(tmp), error);
        let now = meta_of(&output.file).map_err(failed)?;
        let is_unchanged = now.stamp == output.meta.stamp
            && now.size == output.digest.size()
            && self.files.is_movable(&now)
            && self.files.is_same(&output.file, tmp)?;
        if !is_unchanged {
            return Ok(false);
        }
        // Like a file that was written now: after a crash it is verified.
        let set = self.files.set_meta(&output.file, Form::Blob, None);
        set.map_err(failed)?;
        self.files.seal(tmp, &output.file, false)?;
        self.publish_blob(&output.digest, tmp)?;
        Ok(true)
    }

    /// Copies a file, and hashes the copy, since the file may still change.
    async fn copy_in(self: &Arc<Self>, function: DigestFunction, file: Adopt) -> Result<Digest> {
        let open = move |_: &Arc<Self>| {
            let (file, stat) = file.open()?;
            Ok((Arc::new(file), Meta::of(&stat).size))
        };
        let (file, size) = self.run_sized(0, open).await?;
        if size == 0 {
            return Ok(function.empty());
        }
        let write = move |disk: &Self| {
            let fill = |tmp: &str, to: &fs::File| {
                let failed = |error| Error::io("writing", disk.files.path(tmp), error);
                copy(&file, to, size).map_err(failed)?;
                let hashed = hash_file(function, to, u64::MAX).map(Hasher::finish);
                hashed.map_err(failed)
            };
            disk.files.create_new(fill, |tmp, digest| {
                if digest.is_empty_blob() {
                    return disk.files.unlink(tmp).map(|()| digest);
                }
                check_size(&digest, digest.size())?;
                disk.publish_blob(&digest, tmp).map(|_| digest)
            })
        };
        let digest = self.write(size, OUTPUT, write).await?;
        // A lease, if the blob was stored before.
        self.has(&digest, UPLOAD).await?;
        Ok(digest)
    }
}
