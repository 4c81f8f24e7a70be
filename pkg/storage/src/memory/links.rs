//! The store in memory as that of an executor. Its blobs have no files, so that every input is a copy.

use std::{
    ffi::OsStr,
    io::{Read as _, Write as _},
    os::fd::BorrowedFd,
};

use async_trait::async_trait;

use super::MemoryStore;
use crate::{
    Adopt, BlobStore as _, Digest, DigestFunction, Error, Links, PinError, Pins, Result,
    create_input,
};

/// Pins protect nothing, since only tests remove blobs.
#[async_trait]
impl Links for MemoryStore {
    async fn pin(&self, digests: &[Digest]) -> Result<Pins, PinError> {
        let missing = self.find_missing(digests).await?;
        if missing.is_empty() {
            Ok(Pins::new(()))
        } else {
            Err(PinError::Missing(missing))
        }
    }

    fn copy(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<()> {
        let content = self.content(digest)?;
        let mut file = create_input(dir, name, executable)?;
        let written = file.write_all(&content);
        written.map_err(|error| Error::io("writing", name, error))
    }

    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
        let adopt = |file: Adopt| {
            let (mut file, stat) = file.open()?;
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            let mut content = Vec::new();
            std::io::Seek::rewind(&mut file).map_err(Error::source)?;
            let read = file.take(size).read_to_end(&mut content);
            read.map_err(Error::source)?;
            let digest = function.digest(&content);
            if !self.has(&digest) {
                self.publish(&digest, content.into())?;
            }
            Ok(digest)
        };
        files.into_iter().map(adopt).collect()
    }
}
