//! A blob that has arrived as a whole.

use bytes::Bytes;

use super::{StagedUpload, UploadState};
use crate::retries::Retries;
use gorego_storage::{Blob, Digest, Error, Put, Result, verify};

/// A blob that has arrived and is not visible yet. Dropped, it is kept like an interrupted upload.
pub struct CompleteUpload(pub(crate) Box<StagedUpload>);

impl CompleteUpload {
    /// Verifies the content and returns its digest: the announced one or, if the client named no
    /// function, possibly that of the other function. After an error, nothing of the content is
    /// stored.
    pub async fn verify(&mut self) -> Result<Digest> {
        let upload = &mut *self.0;
        let digest = upload.target.digest;
        let verified = if let Some(mut staged) = upload.take_staged()? {
            let verify = move || {
                let verified = staged.verify();
                Ok((staged, verified))
            };
            // Content that may have another function's digest is read again.
            let (staged, verified) = if digest.other().is_some() {
                upload.target.disk.run(move |_| verify()).await?
            } else {
                verify()?
            };
            upload.state = UploadState::Staged(staged);
            verified
        } else {
            upload.state = UploadState::Memory;
            digest_of(&digest, upload.buffer.pieces())
        };
        if verified.is_err() {
            upload.discard().await?;
        }
        verified
    }

    /// Returns the content; it can be read until this is published or dropped.
    pub fn blob(&self) -> Result<Blob> {
        match &self.0.state {
            UploadState::Memory => Ok(Blob::Bytes(self.0.buffer.pieces().concat().into())),
            UploadState::Staged(staged) => staged.blob().map(Blob::File),
            _ => Err(self.0.lost()),
        }
    }

    /// Verifies the content and makes it visible.
    pub async fn publish(mut self) -> Result<Put> {
        let upload = &mut *self.0;
        let (staged, digest) = (upload.take_staged()?, upload.target.digest);
        let disk = &upload.target.disk;
        let Some(mut staged) = staged else {
            let pieces = upload.buffer.take();
            let mut put = disk.put_pieces(&digest, pieces.clone()).await;
            if let (Err(Error::Mismatch { .. }), Some(_)) = (&put, digest.other())
                && let Ok(digest) = digest_of(&digest, &pieces)
            {
                put = disk.put_pieces(&digest, pieces).await;
            }
            upload.remove_kept().await?;
            return put;
        };
        let mut retries = Retries::new(disk, &upload.broken);
        loop {
            let published;
            (staged, published) = disk
                .run(move |_| {
                    let published = staged.publish();
                    Ok((staged, published))
                })
                .await?;
            let Err(error) = published else {
                return published;
            };
            // The disk may have no room for the name.
            let Err(error) = retries.make_space(error, &digest, 1).await else {
                continue;
            };
            // A closed store keeps the upload for its successor.
            if !matches!(error, Error::Unavailable(_)) {
                disk.run(move |_| staged.remove()).await?;
            }
            return Err(error);
        }
    }

    /// Removes the content.
    pub async fn discard(mut self) -> Result<()> {
        self.0.discard().await
    }
}

/// Returns the digest of content in memory, out of those that the client may mean.
fn digest_of(digest: &Digest, pieces: &[Bytes]) -> Result<Digest> {
    let Err(refusal) = verify(digest, pieces) else {
        return Ok(*digest);
    };
    let other = digest.other();
    other
        .filter(|other| verify(other, pieces).is_ok())
        .ok_or(refusal)
}
