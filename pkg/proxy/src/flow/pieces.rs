//! Pieces of a file that readers at the same offset share.

use std::sync::Arc;

use bytes::Bytes;
use gorego_storage::Result;
use tokio::sync::OnceCell;

use crate::shared::Shared;

/// The pieces in use, by offset. Readers at one offset share a piece; without that, each would get a smaller one from
/// the common budget.
pub(super) type PieceCache = Shared<u64, OnceCell<Bytes>>;

impl PieceCache {
    /// Returns the piece at `at`. The first caller reads it; the others wait for that.
    pub(super) async fn piece(
        &self,
        at: u64,
        read: impl Future<Output = Result<Bytes>>,
    ) -> Result<Bytes> {
        let cell = self.get_or_default(&at);
        cell.get_or_try_init(|| read).await?;
        Ok(Bytes::from_owner(Piece(cell)))
    }
}

/// A piece, shared as long as a reader or its connection holds it.
struct Piece(Arc<OnceCell<Bytes>>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.0.get().map_or(&[], |bytes| bytes)
    }
}
