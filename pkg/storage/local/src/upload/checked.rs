//! Checking a complete upload against its digest.

use std::mem;

use bytes::Bytes;

use super::{
    super::{blobs::check_content, core::blocking},
    Phase, Upload,
};
use gorego_storage::{Digest, Result};

impl Upload {
    /// Checks the content of a complete upload, and returns its digest: where the client named no
    /// function, the content tells it.
    pub(crate) async fn verify(&mut self) -> Result<Digest> {
        if self.is_small() {
            return self.digest_of(self.collected.pieces());
        }
        let Phase::Ready(mut staged) = mem::replace(&mut self.phase, Phase::Lost) else {
            return Err(self.lost());
        };
        let verify = move || {
            let verified = staged.verify();
            Ok((staged, verified))
        };
        let (staged, verified) = if self.digest.other().is_some() {
            blocking(verify).await?
        } else {
            verify()?
        };
        self.phase = Phase::Ready(staged);
        verified
    }

    /// The digest that these pieces have, of those that may be meant.
    pub(super) fn digest_of(&self, pieces: &[Bytes]) -> Result<Digest> {
        let Err(refusal) = check_content(&self.digest, pieces) else {
            return Ok(self.digest);
        };
        let other = self.digest.other();
        other
            .filter(|other| check_content(other, pieces).is_ok())
            .ok_or(refusal)
    }
}
