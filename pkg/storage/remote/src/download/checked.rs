//! The checks of a download, and its restart if a resumption may have caused wrong content.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time;

use super::Download;
use gorego_storage::{Error, Hasher, Result};

/// The number of bytes that a resumed download requests once more, to check that they are the same:
/// some peers resume compressed content at another position.
const OVERLAP: usize = 512;

/// The time to wait for the end of a stream whose content is complete and correct.
const GRACE: Duration = Duration::from_secs(1);

impl Download {
    /// Hashes a piece and returns its new part. Returns nothing of the last piece if the content is corrupt.
    pub(super) async fn take(&mut self, mut piece: Bytes) -> Result<Bytes> {
        let again = piece.split_to(piece.len().min(self.overlap.len()));
        if again != self.overlap.split_to(again.len()) {
            let actual = format!("other content when resumed after {} bytes", self.at);
            self.restart(self.mismatch(&actual))?;
            return Ok(Bytes::new());
        }
        let (at, before) = (self.at, self.is_resumed.then(|| self.hasher.clone()));
        self.at += piece.len() as u64;
        let checked = if self.at > self.digest.size() {
            Err(self.too_long())
        } else {
            self.hash(at, &piece)?;
            self.tail = end_of(&self.tail, &piece);
            if self.at < self.digest.size() {
                return Ok(piece);
            }
            self.end().await
        };
        match (checked, before) {
            (Ok(()), _) => self.has_ended = true,
            (Err(error), Some(before)) => {
                (self.at, self.hasher) = (at, before);
                self.restart(error)?;
                piece.clear();
            }
            (Err(error), None) => return Err(error),
        }
        Ok(piece)
    }

    /// Hashes a piece that begins at `at`. After a restart, fails if the content that the reader already
    /// has differs.
    fn hash(&mut self, at: u64, piece: &[u8]) -> Result<()> {
        let Some((given, hasher)) = self
            .before_restart
            .as_ref()
            .filter(|(given, _)| *given > at)
        else {
            self.hasher.update(piece);
            return Ok(());
        };
        let known = usize::try_from(given - at).unwrap_or(usize::MAX);
        let (known, new) = piece.split_at(known.min(piece.len()));
        self.hasher.update(known);
        if at + known.len() as u64 == *given
            && self.hasher.clone().finish() != hasher.clone().finish()
        {
            return Err(self.resumption_error());
        }
        self.hasher.update(new);
        Ok(())
    }

    /// Restarts a corrupt download once, uncompressed, if a resumption may be the cause; otherwise returns the error.
    /// Skips the bytes that the reader has.
    pub(super) fn restart(&mut self, error: Error) -> Result<()> {
        if !self.is_resumed {
            return Err(error);
        }
        if self.before_restart.is_some() {
            return Err(self.resumption_error());
        }
        tracing::debug!(digest = %self.digest, %error, "restarting a download whose resumption brought other content");
        let hasher = Hasher::new(self.digest.function());
        let given = std::mem::replace(&mut self.hasher, hasher);
        // The reader has nothing before the position that it wants.
        let given_to = Some(self.at).filter(|at| *at > self.wanted_from);
        self.wanted_from = self.wanted_from.max(self.at);
        self.before_restart = Some((given_to.unwrap_or_default(), given));
        self.zstd = false;
        self.arriving = None;
        (self.at, self.begun_at, self.is_resumed) = (0, 0, false);
        (self.tail, self.overlap) = (Bytes::new(), Bytes::new());
        Ok(())
    }

    /// Returns the error for content that differs after a resumption.
    fn resumption_error(&self) -> Error {
        let (digest, peer) = (&self.digest, &self.peer.name);
        let why = format!(
            "reading {digest}: {peer} returned other content when the download was resumed; retry"
        );
        Error::Unavailable(why)
    }

    /// Checks the hash, and that no more content arrives. Ignores the peer's status after that, and its
    /// absence.
    async fn end(&mut self) -> Result<()> {
        let actual = self.hasher.clone().finish();
        if actual != self.digest {
            return Err(self.mismatch(&actual.to_string()));
        }
        let grace = self.peer.timeout.min(GRACE);
        let outcome = time::timeout(grace, self.piece()).await;
        self.arriving = None;
        match outcome {
            Ok(Ok(Some(_))) => Err(self.too_long()),
            _ => Ok(()),
        }
    }

    fn too_long(&self) -> Error {
        self.mismatch(&format!("more than {} bytes", self.digest.size()))
    }

    pub(super) fn mismatch(&self, actual: &str) -> Error {
        let peer = &self.peer.name;
        Error::mismatch(&self.digest, format_args!("{actual}, from {peer}"))
    }
}

/// Returns the last bytes of `tail` and the piece after it, as a copy that keeps no large piece in memory.
fn end_of(tail: &Bytes, piece: &Bytes) -> Bytes {
    let of_piece = piece.slice(piece.len().saturating_sub(OVERLAP)..);
    let missing = (OVERLAP - of_piece.len()).min(tail.len());
    let mut end = BytesMut::with_capacity(OVERLAP);
    end.extend_from_slice(&tail.slice(tail.len() - missing..));
    end.extend_from_slice(&of_piece);
    end.freeze()
}
