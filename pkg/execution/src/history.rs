//! The memory that actions used before, on disk, so that it is known after a restart.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gorego_scheduler::{History, Kind};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

/// The most kinds of actions that are remembered.
const KINDS: usize = 4096;
/// The most bytes of the file that are read. The longest one is shorter.
const MAX_BYTES: u64 = 8 << 20;
/// The time from a record until the file is written.
const DELAY: Duration = Duration::from_mins(1);

/// The memory that kinds of actions used before. Its file has a line for each kind: the peaks in bytes, a tab, and the
/// name.
#[derive(Debug)]
pub struct MemoryHistory {
    history: Mutex<History>,
    /// The file, and the one that becomes it.
    files: Option<(PathBuf, PathBuf)>,
    /// Wakes the task that saves it.
    changed: Notify,
}

impl Default for MemoryHistory {
    /// Creates an empty one without a file.
    fn default() -> Self {
        Self {
            history: Mutex::new(History::new(KINDS)),
            files: None,
            changed: Notify::new(),
        }
    }
}

impl MemoryHistory {
    /// Reads `file`, as far as it exists and is valid. Later it is replaced by way of `new`. Blocks.
    pub(crate) fn open(file: PathBuf, new: PathBuf) -> Self {
        let mut history = History::new(KINDS);
        match read(&file, &mut history) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "failed to read {}", file.display());
            }
            _ => {}
        }
        Self {
            history: Mutex::new(history),
            files: Some((file, new)),
            changed: Notify::new(),
        }
    }

    /// Returns the memory to reserve for an action of this kind, in bytes; 0 if none ran before.
    pub(crate) fn estimate(&self, kind: &Kind) -> u64 {
        self.history.lock().estimate(kind).unwrap_or_default()
    }

    /// Records the peak of an action's memory, in bytes.
    pub(crate) fn record(&self, kind: &Kind, peak: u64) {
        self.history.lock().record(kind, peak);
        self.changed.notify_one();
    }

    /// Saves the history some time after each change, and at the end.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.changed.notified() => {
                    let _ = stop.run_until_cancelled(sleep(DELAY)).await;
                }
            }
            let this = Arc::clone(&self);
            // A panic leaves the file as it is.
            let _ = spawn_blocking(move || this.save()).await;
            if stop.is_cancelled() {
                return;
            }
        }
    }

    fn save(&self) {
        let Some((file, new)) = &self.files else {
            return;
        };
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(new)
            .and_then(|mut new| new.write_all(&self.text()));
        let saved = written.and_then(|()| fs::rename(new, file));
        if let Err(error) = saved {
            tracing::warn!(%error, "failed to save {}", file.display());
        }
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (kind, peaks) in self.history.lock().entries() {
            // Names come from clients; those of builds have one line.
            if kind.name().contains('\n') {
                continue;
            }
            let peaks: Vec<_> = peaks.iter().map(u64::to_string).collect();
            // Writing to memory does not fail.
            let _ = writeln!(text, "{}\t{}", peaks.join(" "), kind.name());
        }
        text
    }
}

/// Records the valid lines of a file.
fn read(file: &Path, history: &mut History) -> io::Result<()> {
    for line in BufReader::new(File::open(file)?.take(MAX_BYTES)).split(b'\n') {
        let line = String::from_utf8(line?).unwrap_or_default();
        let Some((peaks, name)) = line.split_once('\t') else {
            continue;
        };
        for peak in peaks.split(' ').filter_map(|peak| peak.parse().ok()) {
            history.record(&Kind::named(name), peak);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> MemoryHistory {
        MemoryHistory::open(dir.join("file"), dir.join("new"))
    }

    fn kind(target: &str) -> Kind {
        Kind::new(target, "Rustc", "")
    }

    #[test]
    fn a_saved_history_gives_the_same_estimates() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(dir.path());
        for peak in [3, 9, 5] {
            history.record(&kind("//a\tb"), peak);
        }
        history.record(&kind("//c"), 7);
        history.record(&kind("two\nlines"), 8);
        history.save();
        let read = open(dir.path());
        assert_eq!(read.estimate(&kind("//a\tb")), 9);
        assert_eq!(read.estimate(&kind("//c")), 7);
        assert_eq!(read.estimate(&kind("lines")), 0);
    }

    #[test]
    fn garbage_in_the_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = b"\xff\xfe\t\n\n1 x -2 99999999999999999999 4\tRustc //a\nno tab\n5\t";
        fs::write(dir.path().join("file"), garbage).unwrap();
        let history = open(dir.path());
        assert_eq!(history.estimate(&kind("//a")), 4);
        fs::remove_file(dir.path().join("file")).unwrap();
        fs::create_dir(dir.path().join("file")).unwrap();
        assert_eq!(open(dir.path()).estimate(&kind("//a")), 0);
    }

    #[tokio::test]
    async fn the_history_is_saved_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let history = Arc::new(open(dir.path()));
        let stop = CancellationToken::new();
        history.record(&kind("//a"), 6);
        stop.cancel();
        history.keep(stop).await;
        assert_eq!(open(dir.path()).estimate(&kind("//a")), 6);
    }
}
