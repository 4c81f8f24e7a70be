//! The command of a job while it runs, for clients that read its logs and resources.

use std::{fs::File, io, sync::Arc, time::Duration};

use bytes::Bytes;
use gorego_sandbox::LiveCommand;
use gorego_scheduler::LogKind;
use gorego_storage::read_at;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    task::spawn_blocking,
    time::sleep,
};

/// The interval in which a log is read that had no more to read.
const POLL: Duration = Duration::from_millis(100);
/// The most bytes that are read at a time. Readers may be slow, so that it is little.
const PIECE: usize = 12 * 1024;

/// The current run of a job's command; none before it starts and after its end.
#[derive(Debug, Default)]
pub struct Live(watch::Sender<Option<LiveRun>>);

/// A run of a command.
#[derive(Clone, Debug)]
struct LiveRun {
    attempt: u32,
    stdout: Arc<File>,
    stderr: Arc<File>,
    command: LiveCommand,
}

/// The end of a run, when dropped.
pub(crate) struct LiveGuard<'a>(&'a Live);

impl Drop for LiveGuard<'_> {
    fn drop(&mut self) {
        self.0.0.send_replace(None);
    }
}

impl Live {
    /// Shows the run of a command until the guard is dropped.
    pub(crate) fn show(
        &self,
        attempt: u32,
        [stdout, stderr]: [File; 2],
        command: LiveCommand,
    ) -> LiveGuard<'_> {
        self.0.send_replace(Some(LiveRun {
            attempt,
            stdout: Arc::new(stdout),
            stderr: Arc::new(stderr),
            command,
        }));
        LiveGuard(self)
    }

    /// Returns the command, if it runs.
    pub(crate) fn command(&self) -> Option<LiveCommand> {
        let run = self.0.borrow();
        run.as_ref().map(|run| run.command.clone())
    }

    /// Returns a reader of a log of this attempt, which may not run yet.
    pub(crate) fn read(
        &self,
        attempt: u32,
        kind: LogKind,
        offset: u64,
        permit: OwnedSemaphorePermit,
    ) -> LogReader {
        LogReader {
            runs: self.0.subscribe(),
            attempt,
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
    runs: watch::Receiver<Option<LiveRun>>,
    attempt: u32,
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
            self.has_ended |= self.runs.has_changed().unwrap_or(true);
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
                _ = self.runs.changed() => self.has_ended = true,
            }
        }
    }

    /// Waits for the run of the attempt. `None` if the attempt ends without one.
    async fn open(&mut self) -> Option<Arc<File>> {
        if self.file.is_none() {
            let (attempt, kind) = (self.attempt, self.kind);
            let is_due = |run: &Option<LiveRun>| {
                let run = run.as_ref();
                run.is_some_and(|run| run.attempt >= attempt)
            };
            let run = self.runs.wait_for(is_due).await.ok()?.clone();
            let run = run.filter(|run| run.attempt == attempt)?;
            self.file = Some(match kind {
                LogKind::Stdout => run.stdout,
                LogKind::Stderr => run.stderr,
            });
        }
        self.file.clone()
    }
}
