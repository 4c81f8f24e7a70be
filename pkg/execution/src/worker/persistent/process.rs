//! A persistent worker: its process, and the directory in which it finds the files of one action after another.

use std::{
    ffi::CString,
    io::{self, pipe},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use gorego_sandbox::{Ended, Exit, Launch, LaunchError, LiveCommand, LiveUsage, Usage};
use gorego_storage::{Digest, read_at};
use rustix::fs::Dir;
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe::{Receiver, Sender},
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use tokio_util::sync::DropGuard;

use super::{
    measure::measure,
    protocol::{Answers, Breach, Protocol, WorkResponse},
};
use crate::{
    logs::LogFile,
    publish,
    worker::{NodeWorker, build_root::ActionDir, users::User},
};

/// The most bytes of the standard error that are kept after an action.
const MAX_STDERR: u64 = 1 << 20;
/// The most bytes of the standard error in the warning about a failure.
const TAIL: u64 = 2048;

/// The time for a worker to end after it closed its standard output.
const PATIENCE: Duration = Duration::from_secs(1);

/// The place of a worker. Released when nothing uses it any more.
#[derive(Debug)]
pub(super) struct Home {
    // Dropped in this order: the directory is in the trash before another action gets the user.
    pub(super) dir: ActionDir,
    pub(super) stderr: LogFile,
    pub(super) user: Option<Arc<User>>,
    pub(super) _slot: OwnedSemaphorePermit,
}

/// A persistent worker. Its processes are killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) key: Digest,
    pub(super) home: Arc<Home>,
    /// The processes. They start with the first request, as they need the files of the tool.
    running: Option<RunningProcess>,
    /// The number of requests that it has answered.
    pub(super) uses: u32,
    /// The resources that it had used at the last measurement.
    pub(super) used: LiveUsage,
    pub(super) idle_since: Instant,
}

#[derive(Debug)]
struct RunningProcess {
    requests: Sender,
    answers: Answers<Receiver>,
    /// Receives the reason of the end, when no process is left and the place is released.
    ended: oneshot::Receiver<String>,
    live: LiveCommand,
    stop: DropGuard,
}

impl Process {
    pub(super) fn new(key: Digest, home: Home) -> Self {
        Self {
            key,
            home: Arc::new(home),
            running: None,
            uses: 0,
            used: LiveUsage::default(),
            idle_since: Instant::now(),
        }
    }

    pub(super) const fn has_started(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn live(&self) -> LiveCommand {
        let running = self.running.as_ref();
        running.map_or_else(LiveCommand::default, |running| running.live.clone())
    }

    /// Begins the turn of an action that puts so many bytes into its directory.
    pub(super) async fn begin(&mut self, given: u64) {
        self.live().start_turn(Some(given));
        if self.uses > 0 {
            // What it did meanwhile is not due to the action.
            self.measure().await;
        }
    }

    /// Returns the processor time since the last measurement. The most memory in that time is not known.
    pub(super) async fn measure(&mut self) -> Usage {
        let before = self.used;
        self.used = measure(self.live()).await.unwrap_or(before);
        let system = self.used.system.saturating_sub(before.system);
        let processor = self.used.processor.saturating_sub(before.processor);
        Usage {
            user: processor.saturating_sub(system),
            system,
            ..Usage::default()
        }
    }

    /// Starts the processes of `launch`, with pipes as standard input and output.
    pub(super) fn start(
        &mut self,
        worker: &NodeWorker,
        protocol: Protocol,
        launch: Launch,
    ) -> io::Result<()> {
        let (stdin, requests) = pipe()?;
        let (answers, stdout) = pipe()?;
        let launch = Launch {
            stdin: Some(stdin.into()),
            stdout: stdout.into(),
            timeout: Duration::MAX,
            ..launch
        };
        let (sender, ended) = oneshot::channel();
        let stop = worker.stop.child_token();
        let running = RunningProcess {
            requests: Sender::from_owned_fd(requests.into())?,
            answers: Answers::new(Receiver::from_owned_fd(answers.into())?, protocol),
            ended,
            live: launch.live.clone(),
            stop: stop.clone().drop_guard(),
        };
        let (runner, home) = (Arc::clone(&worker.runner), Arc::clone(&self.home));
        worker.tasks.spawn(async move {
            let ended = runner.run(launch, stop).await;
            drop(home);
            let _ = sender.send(describe(&ended));
        });
        self.running = Some(running);
        Ok(())
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(&mut self, request: &[u8]) -> Result<WorkResponse, Breach> {
        let Some(running) = &mut self.running else {
            return Err(Breach::Closed);
        };
        let exchange = async {
            let send = async { Ok(running.requests.write_all(request).await?) };
            // Both at once, as the worker may write before it has read everything.
            let ((), response) = tokio::try_join!(send, running.answers.next())?;
            Ok(response)
        };
        let exchanged = tokio::select! {
            biased;
            exchanged = exchange => exchanged,
            why = &mut running.ended => Err(Breach::Ended(why.unwrap_or_default())),
        };
        if let Err(Breach::Closed | Breach::Io(_)) = exchanged {
            // The worker probably ends, and the reason says more than the error of the pipe.
            let ended = tokio::time::timeout(PATIENCE, &mut running.ended).await;
            if let Ok(Ok(why)) = ended {
                return Err(Breach::Ended(why));
            }
        }
        let response = exchanged?;
        if !running.answers.is_quiet() {
            return Err(Breach::Surplus);
        }
        self.uses += 1;
        Ok(response)
    }

    /// Returns whether it can get another request: it runs, has written nothing without a request, and has left no file.
    /// Blocks for a moment.
    pub(super) fn is_sound(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        let runs = matches!(
            running.ended.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
        runs && running.answers.is_quiet()
            && names(&self.home.dir.root).is_ok_and(|names| names.is_empty())
    }

    /// Kills its processes, and waits until none is left.
    pub(super) async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end().await;
        }
    }

    /// Kills its processes, and waits until none is left and its place is released, unless something else uses the
    /// place.
    pub(super) async fn end(self) {
        let Self { home, running, .. } = self;
        drop(home);
        if let Some(running) = running {
            running.end().await;
        }
    }
}

impl RunningProcess {
    async fn end(self) {
        drop(self.stop);
        if !self.ended.is_terminated() {
            // The reason does not matter.
            let _ = self.ended.await;
        }
    }
}

impl Home {
    /// Moves the files of an action from `root` to the worker, or back if `back`. Blocks.
    pub(super) fn move_files(&self, root: &OwnedFd, back: bool) -> io::Result<()> {
        let own = &self.dir.root;
        let (from, to) = if back { (own, root) } else { (root, own) };
        for name in names(from)? {
            rustix::fs::renameat(from, &name, to, &name)?;
        }
        Ok(())
    }

    /// Returns the end of the standard error.
    pub(super) fn tail(&self) -> String {
        let tail = || {
            let file = self.stderr.reader().ok()?;
            let from = file.metadata().ok()?.len().saturating_sub(TAIL);
            read_at(&file, from, usize::try_from(TAIL).ok()?).ok()
        };
        String::from_utf8_lossy(&tail().unwrap_or_default()).into_owned()
    }

    /// Empties the standard error if it is long. Blocks.
    pub(super) fn trim(&self) -> io::Result<()> {
        let file = self.stderr.reader().map_err(io::Error::other)?;
        if file.metadata()?.len() > MAX_STDERR {
            file.set_len(0)?;
        }
        Ok(())
    }
}

/// Returns the names in a directory.
fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns a clause about the end of a worker.
fn describe(ended: &Result<Ended, LaunchError>) -> String {
    match ended {
        Err(error) => error.to_string(),
        Ok(Ended {
            excess: Some(excess),
            ..
        }) => publish::describe(excess),
        Ok(Ended {
            exit: Exit::Code(code),
            ..
        }) => format!("it exited with code {code}"),
        Ok(Ended {
            exit: Exit::Signal(signal),
            ..
        }) => format!("signal {signal} killed it"),
    }
}
