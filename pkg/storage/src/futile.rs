//! Eviction that frees nothing on the disk.

use std::time::Duration;

use tokio::time::Instant;

use crate::Usage;

/// The first and the longest pause of eviction for the disk's sake after it did not help.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_hours(1));

/// Remembers that evicted bytes did not become free on the disk: others use them, have reserved
/// them, or hold links to the same files. Evicting more would lose the whole cache and free
/// nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Futile {
    until: Option<Instant>,
    pause: Duration,
    /// Whether the disk was short of files rather than bytes.
    files: bool,
    /// The free amount at that time; when there is more, eviction is worth another attempt.
    free: Option<u64>,
}

impl Futile {
    /// Whether eviction is not worth an attempt yet.
    pub fn holds(&self, usage: &Usage) -> bool {
        let rests = self.until.is_some_and(|until| Instant::now() < until);
        rests && free(usage, self.files) <= self.free.map(|free| free + worth(usage, self.files))
    }

    /// Eviction did not help again; `files` says that it was to free these, and not bytes.
    pub fn record(&mut self, usage: &Usage, files: bool) {
        let pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
        *self = Self {
            until: Some(Instant::now() + pause),
            pause,
            files,
            free: free(usage, files),
        };
        tracing::warn!(
            free = usage.free_on_disk,
            free_files = usage.free_files,
            used = usage.used,
            "the disk is full, and evicting blobs does not free it: other programs hold it, or links to \
             the same files; remove some of their files"
        );
    }

    /// Records that eviction helped.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The rise of the free amount after which another attempt is worth it: others' files come and go.
fn worth(usage: &Usage, files: bool) -> u64 {
    if files {
        usage.files / 64
    } else {
        (usage.limit / 64).min(64 << 20)
    }
}

const fn free(usage: &Usage, files: bool) -> Option<u64> {
    if files {
        usage.free_files
    } else {
        usage.free_on_disk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_when_others_free_something() {
        let usage = |bytes, files| Usage {
            free_on_disk: Some(bytes),
            free_files: Some(files),
            ..Usage::default()
        };
        let mut futile = Futile::default();
        assert!(!futile.holds(&usage(0, 0)));
        for seconds in [5, 10, 20] {
            futile.record(&usage(7, 0), false);
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(futile.holds(&usage(7, 99)) && !futile.holds(&usage(8, 0)));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!futile.holds(&usage(7, 0)));
        }
        futile.record(&usage(0, 7), true);
        assert!(futile.holds(&usage(99, 7)) && !futile.holds(&usage(0, 8)));
        futile.clear();
        assert!(!futile.holds(&usage(0, 7)));
    }
}
