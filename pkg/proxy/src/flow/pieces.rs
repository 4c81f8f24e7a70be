//! Pieces of a file that readers at the same offset share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use gorego_storage::Result;
use tokio::sync::OnceCell;

/// The pieces in use, by offset. Readers at one offset share a piece; without that, each would get a smaller one from
/// the common budget.
#[derive(Debug, Default)]
pub(super) struct PieceCache(Mutex<HashMap<u64, Weak<OnceCell<Bytes>>>>);

impl PieceCache {
    /// Returns the piece at `at`. The first caller reads it; the others wait for that.
    pub(super) async fn piece(
        &self,
        at: u64,
        read: impl Future<Output = Result<Bytes>>,
    ) -> Result<Bytes> {
        let cell = self.cell(at);
        cell.get_or_try_init(|| read).await?;
        Ok(Bytes::from_owner(Piece(cell)))
    }

    fn cell(&self, at: u64) -> Arc<OnceCell<Bytes>> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(&at).and_then(Weak::upgrade) {
            return cell;
        }
        cells.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::default();
        cells.insert(at, Arc::downgrade(&cell));
        cell
    }
}

/// A piece, shared as long as a reader or its connection holds it.
struct Piece(Arc<OnceCell<Bytes>>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.0.get().map_or(&[], |bytes| bytes)
    }
}
