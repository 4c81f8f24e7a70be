//! What is written down, and not yet accepted.

use std::{mem, sync::Arc};

use gorego_storage::{Digest, Error, Result};
use tokio::runtime::Handle;

use super::{Journal, What, state::Pin};

/// Entries that nobody was told of. Dropped, they are taken back: after a crash meanwhile they are
/// at worst a record too much.
#[must_use = "dropped, it is taken back"]
pub(crate) struct Announced {
    journal: Arc<Journal>,
    entries: Vec<(u64, What)>,
    /// Blobs that need no entry, as long as theirs still waits.
    waiting: Vec<Digest>,
}

impl Announced {
    pub(super) const fn new(
        journal: Arc<Journal>,
        entries: Vec<(u64, What)>,
        waiting: Vec<Digest>,
    ) -> Self {
        Self {
            journal,
            entries,
            waiting,
        }
    }

    /// Accepts them. Blobs have to be in the local store by now, and stay there.
    pub(crate) async fn accept(mut self) -> Result<()> {
        let mut accepted = Vec::with_capacity(self.entries.len());
        for (number, what) in &self.entries {
            let kept = match what {
                What::Blob(digest) => Some(self.keep(digest).await?),
                What::Action(..) => None,
            };
            accepted.push((*number, kept));
        }
        // Their entries may date from before they were lost here and brought anew.
        let mut anew = Vec::with_capacity(self.waiting.len());
        for digest in &self.waiting {
            anew.push((*digest, self.keep(digest).await?));
        }
        self.entries.clear();
        if accepted.is_empty() && anew.is_empty() {
            return Ok(());
        }
        let journal = Arc::clone(&self.journal);
        let accept = self.journal.change(move |state| {
            for (number, kept) in accepted {
                state.accept(number, kept);
            }
            journal.accept_anew(state, anew)
        });
        accept.await?
    }

    async fn keep(&self, digest: &Digest) -> Result<Pin> {
        let gone = || Error::Unavailable(format!("blob {digest} did not stay here"));
        self.journal.local.keep(digest).await?.ok_or_else(gone)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let entries = mem::take(&mut self.entries);
        if entries.is_empty() {
            return;
        }
        let take_back = move |journal: &Journal| {
            let mut state = journal.state();
            for (number, _) in entries {
                state.remove(number);
            }
            state.tidy();
            journal.tell(&state);
        };
        let journal = Arc::clone(&self.journal);
        if let Ok(runtime) = Handle::try_current() {
            // It may have to wait for the disk.
            runtime.spawn_blocking(move || take_back(&journal));
        } else {
            take_back(&journal);
        }
    }
}
