//! The command of a job while it runs, for clients that read its logs and resources.

use std::{
    fs::File,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use gorego_sandbox::LiveCommand;
use gorego_scheduler::{AttemptId, LogKind};
use gorego_storage::read_at;
use parking_lot::Mutex;
use reapi::gorego::ResourceUsage;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    task::spawn_blocking,
    time::sleep,
};

/// The interval in which a log is read that had no more to read.
const POLL: Duration = Duration::from_millis(100);
/// The most bytes that are read at a time. Readers may be slow, so that it is little.
const PIECE: usize = 12 * 1024;

/// The current or last run of a job's command; none before the first starts and after the end of its attempt.
#[derive(Debug, Default)]
pub struct Live {
    /// Created for the first run or reader: most jobs wait much longer than they run.
    runs: OnceLock<watch::Sender<Runs>>,
    /// The resources that the command uses at another node, and the attempt there.
    elsewhere: Mutex<Option<Box<(AttemptId, ResourceUsage)>>>,
}

#[derive(Clone, Debug, Default)]
struct Runs {
    current: Option<LiveRun>,
    /// Set if no other run follows.
    has_ended: bool,
}

/// A run of a command. Its logs can be read until the next run, so that no reader misses a short one.
#[derive(Clone, Debug)]
struct LiveRun {
    number: u32,
    stdout: Arc<File>,
    stderr: Arc<File>,
    /// `None` once it has ended.
    command: Option<LiveCommand>,
}

/// The end of a run, when dropped.
pub(crate) struct LiveGuard<'a>(&'a Live);

impl Drop for LiveGuard<'_> {
    fn drop(&mut self) {
        self.0.runs().send_modify(|runs| {
            if let Some(run) = &mut runs.current {
                run.command = None;
            }
        });
    }
}

impl Live {
    fn runs(&self) -> &watch::Sender<Runs> {
        self.runs.get_or_init(watch::Sender::default)
    }

    /// Shows the run of a command until the guard is dropped. Its logs are kept until the next run, or [`Self::end`].
    pub(crate) fn show(
        &self,
        number: u32,
        [stdout, stderr]: [File; 2],
        command: LiveCommand,
    ) -> LiveGuard<'_> {
        let current = Some(LiveRun {
            number,
            stdout: Arc::new(stdout),
            stderr: Arc::new(stderr),
            command: Some(command),
        });
        self.runs().send_replace(Runs {
            current,
            has_ended: false,
        });
        LiveGuard(self)
    }

    /// Releases the logs of the last run. With `is_last`, also ends the readers that wait for another run.
    pub(crate) fn end(&self, is_last: bool) {
        self.runs().send_replace(Runs {
            current: None,
            has_ended: is_last,
        });
    }

    /// Returns the command, if it runs.
    pub(crate) fn command(&self) -> Option<LiveCommand> {
        self.runs.get()?.borrow().current.as_ref()?.command.clone()
    }

    /// Records the resources that the command uses in an attempt at another node; `None` if it does not run.
    pub(crate) fn set_elsewhere(&self, attempt: AttemptId, usage: Option<ResourceUsage>) {
        *self.elsewhere.lock() = usage.map(|usage| Box::new((attempt, usage)));
    }

    /// Returns the resources that the command uses in an attempt at another node.
    pub(crate) fn elsewhere(&self, attempt: AttemptId) -> Option<ResourceUsage> {
        let elsewhere = self.elsewhere.lock();
        let (of, usage) = **elsewhere.as_ref()?;
        (of == attempt).then_some(usage)
    }

    /// Returns a reader of a log of this run, which may not have begun yet.
    pub(crate) fn read(
        &self,
        number: u32,
        kind: LogKind,
        offset: u64,
        permit: OwnedSemaphorePermit,
    ) -> LogReader {
        LogReader {
            runs: self.runs().subscribe(),
            number,
            kind,
            file: None,
            offset,
            has_ended: false,
            _permit: permit,
        }
    }
}

/// A reader that follows a log while it is written. It holds the log's file, and nothing else of the action.
#[derive(Debug)]
pub struct LogReader {
    runs: watch::Receiver<Runs>,
    number: u32,
    kind: LogKind,
    file: Option<Arc<File>>,
    offset: u64,
    has_ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl LogReader {
    /// Returns the next bytes, at most `most` of them, once there are some; `None` after the last ones, when the
    /// command has ended.
    pub async fn next(&mut self, most: u64) -> io::Result<Option<Bytes>> {
        let Some(file) = self.open().await else {
            return Ok(None);
        };
        let len = PIECE.min(usize::try_from(most).unwrap_or(PIECE));
        loop {
            // Known before the read, so that nothing is left out.
            self.has_ended |= !self.is_running();
            let (reading, at) = (Arc::clone(&file), self.offset);
            let read = spawn_blocking(move || read_at(&reading, at, len)).await;
            let bytes = read.map_err(io::Error::other)??;
            if !bytes.is_empty() {
                self.offset = self.offset.saturating_add(bytes.len() as u64);
                return Ok(Some(bytes));
            }
            if self.has_ended {
                return Ok(None);
            }
            tokio::select! {
                () = sleep(POLL) => {}
                _ = self.runs.changed() => {}
            }
        }
    }

    /// Returns whether the command still runs.
    fn is_running(&mut self) -> bool {
        let is_job_there = self.runs.has_changed().is_ok();
        let runs = self.runs.borrow_and_update();
        let run = runs.current.as_ref();
        is_job_there && run.is_some_and(|run| run.number == self.number && run.command.is_some())
    }

    /// Waits for the run. `None` if the job ends without it.
    async fn open(&mut self) -> Option<Arc<File>> {
        if self.file.is_none() {
            let (number, kind) = (self.number, self.kind);
            let is_due = |runs: &Runs| {
                let run = runs.current.as_ref();
                runs.has_ended || run.is_some_and(|run| run.number >= number)
            };
            let runs = self.runs.wait_for(is_due).await.ok()?.clone();
            let run = runs.current.filter(|run| run.number == number)?;
            self.file = Some(match kind {
                LogKind::Stdout => run.stdout,
                LogKind::Stderr => run.stderr,
            });
        }
        self.file.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use tokio::sync::Semaphore;

    use super::*;

    fn logs(text: &str) -> [File; 2] {
        [(); 2].map(|()| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            file
        })
    }

    fn read(live: &Live, number: u32) -> LogReader {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        live.read(number, LogKind::Stdout, 0, permit)
    }

    async fn rest(mut reader: LogReader) -> String {
        let mut rest = Vec::new();
        while let Some(piece) = reader.next(u64::MAX).await.unwrap() {
            rest.extend_from_slice(&piece);
        }
        String::from_utf8(rest).unwrap()
    }

    #[tokio::test]
    async fn the_reader_of_a_short_run_sees_it_whole() {
        let live = Live::default();
        let (early, next) = (read(&live, 1), read(&live, 2));
        drop(live.show(1, logs("one"), LiveCommand::default()));
        let late = read(&live, 1);
        for reader in [early, late] {
            assert_eq!(rest(reader).await, "one");
        }
        drop(live.show(2, logs("two"), LiveCommand::default()));
        assert_eq!(rest(next).await, "two");
        assert!(live.command().is_none());
    }

    #[tokio::test]
    async fn a_reader_sees_one_run_only() {
        let live = Live::default();
        let first = live.show(1, logs("one"), LiveCommand::default());
        let mut reader = read(&live, 1);
        let piece = reader.next(u64::MAX).await.unwrap();
        assert_eq!(piece.as_deref(), Some(&b"one"[..]));
        drop(first);
        let _second = live.show(2, logs("the second"), LiveCommand::default());
        assert!(live.command().is_some());
        assert_eq!(rest(reader).await, "");
        assert_eq!(rest(read(&live, 1)).await, "");
    }

    #[tokio::test]
    async fn a_reader_whose_run_never_begins_ends_with_the_job() {
        let live = Live::default();
        let reader = read(&live, 2);
        drop(live.show(1, logs("one"), LiveCommand::default()));
        live.end(false);
        drop(live);
        assert_eq!(rest(reader).await, "");
    }

    #[tokio::test]
    async fn a_reader_whose_run_never_begins_ends_with_the_last_run() {
        let live = Live::default();
        let reader = read(&live, 1);
        live.end(true);
        assert_eq!(rest(reader).await, "");
        assert_eq!(rest(read(&live, 1)).await, "");
    }
}
