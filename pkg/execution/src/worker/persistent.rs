//! Persistent workers: processes that run one action after another, for clients that ask for them (Bazel's worker
//! protocol). If a worker cannot run an action, the action runs by itself, with the same result.
//!
//! A worker runs as an action does: in a directory, with a user, in namespaces and with limits of its own. Each action
//! is staged as always. Its files are then moved into the worker's directory, and back after the answer, so that the
//! worker has a stable path but no earlier action's files. Files that the worker could change are copies, and its
//! outputs are copied into the store, as the worker lives on and may still have them open.

mod arguments;
mod measure;
mod plan;
mod pool;
mod process;
mod protocol;
mod wish;

use std::{
    fs::File,
    future::pending,
    io::{self, Read as _, Write as _},
    mem,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use gorego_sandbox::{Ended, Exit, Launch, Leftovers, NetworkAttempts, Usage};
use gorego_scheduler::Phase;
use gorego_storage::{Error, shorten};
use reapi::v2::ExecuteResponse;
use rustix::fs::{Mode, OFlags};
use tokio::time::timeout;

use super::{
    NodeWorker, block,
    run::{Run, Staged},
    users::User,
};
use crate::{
    abort::Abort,
    beneath::{open_beneath, split_last},
    logs::LogFile,
    publish::Times,
};
use plan::Plan;
pub use pool::PersistentCounts;
pub(super) use pool::Pool;
use process::{Home, Process};
pub use protocol::Protocol;
use protocol::{Breach, WorkResponse};
pub use wish::PersistentWish;

/// The most bytes of a flag file.
const MAX_FLAGS: u64 = 32 << 20;
/// The exit of a worker that was killed at the timeout of an action.
const KILLED: Exit = Exit::Signal(9);

/// An action that is ready to run in a worker.
struct Prepared {
    staged: Staged,
    /// The command that starts the worker.
    start: Vec<String>,
    protocol: Protocol,
    request: Vec<u8>,
}

/// The end of an action in a worker.
struct Answer {
    /// `None`: the action timed out.
    response: Option<WorkResponse>,
    usage: Usage,
}

/// The reason why a worker did not run an action to its end.
enum Fault {
    Abort(Abort),
    Breach(Breach),
}

impl From<Abort> for Fault {
    fn from(abort: Abort) -> Self {
        Self::Abort(abort)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Abort(error.into())
    }
}

impl From<Breach> for Fault {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

impl NodeWorker {
    /// Returns the counts of persistent workers, all zero if there are none.
    pub fn persistent(&self) -> PersistentCounts {
        let pool = self.persistent.as_ref();
        pool.map_or_else(PersistentCounts::default, |pool| pool.counts())
    }

    /// Returns whether an action may need the memory of idle persistent workers, since it takes all of the rest.
    pub(super) fn needs_idle_memory(&self, memory: u64) -> bool {
        let idle = self.options.idle_memory();
        idle > 0 && memory.saturating_add(idle) >= self.options.memory
    }

    /// Ends the idle persistent workers.
    pub(super) async fn end_idle(&self) {
        if let Some(pool) = &self.persistent {
            pool.clear().await;
        }
    }
}

impl Run<'_> {
    /// Runs the action in a persistent worker. Returns the response after it is published; `None` if the action has to
    /// run by itself.
    pub(super) async fn in_worker(&self) -> Result<Option<ExecuteResponse>, Abort> {
        let Some(pool) = &self.worker.persistent else {
            return Ok(None);
        };
        if self.alone {
            return Ok(None);
        }
        match self.in_worker_of(pool).await {
            Err(abort @ (Abort::Stopped | Abort::Final(_))) => Err(abort),
            Err(abort) => {
                let action = self.job.key.action;
                tracing::warn!(%action, error = %abort, "a persistent worker cannot run an action");
                Ok(None)
            }
            response => response,
        }
    }

    async fn in_worker_of(&self, pool: &Arc<Pool>) -> Result<Option<ExecuteResponse>, Abort> {
        if self.job.persistent.is_none() {
            return Ok(None);
        }
        let (job, options) = (Arc::clone(self.job), self.worker.options.clone());
        let Some(plan) = block(move || Ok(Plan::of(&job, &options))).await? else {
            return Ok(None);
        };
        let key = plan.key;
        if pool.is_broken(&key) {
            return Ok(None);
        }
        let mut times = Times::new(self.job.queued, self.start);
        (self.begin)(Phase::Fetch);
        let _pins = self.fetch().await?;
        (self.begin)(Phase::Stage);
        let Some(mut process) = self.process(pool, &plan).await? else {
            return Ok(None);
        };
        let prepared = match self.prepare_for(&process, plan).await {
            Ok(prepared) => prepared,
            Err(abort) => {
                // The worker knows nothing of it.
                pool.put(process);
                return Err(abort);
            }
        };
        times.fetch_end = SystemTime::now();
        (self.begin)(Phase::Run);
        let silence = (process.uses == 0).then_some(pool.silence);
        let (staged, answer) = match self.ask(&mut process, prepared, silence).await {
            Ok(answered) => answered,
            Err(Fault::Abort(abort)) => {
                process.end().await;
                return Err(abort);
            }
            Err(Fault::Breach(breach)) => {
                self.discard(pool, process, &breach).await;
                return Ok(None);
            }
        };
        if self.altered(&staged).await? {
            return Ok(None);
        }
        if answer.response.is_some() {
            let resident = process.used.resident_bytes;
            self.worker.memory.record(&self.job.kind, resident);
            pool.put(process);
        } else if process.uses == 0 {
            // Perhaps it does not speak the protocol.
            pool.add_broken(process.key);
        }
        pool.answered.fetch_add(1, Relaxed);
        self.count_inputs();
        let ended = Ok(report_of(times.fetch_end, answer));
        self.keep_if_failed(&staged, &ended).await;
        self.finish(times, staged, ended?).await.map(Some)
    }

    /// Returns a worker for the action, which may not run yet. `None` if all of them are busy.
    async fn process(&self, pool: &Pool, plan: &Plan) -> Result<Option<Process>, Abort> {
        if let Some(process) = pool.take(&plan.key) {
            return Ok(Some(process));
        }
        let Some(slot) = pool.slot().await else {
            return Ok(None);
        };
        let user = self.worker.users.take()?;
        let build_root = Arc::clone(&self.worker.build_root);
        let key = plan.key;
        let create = move || {
            let id = user.as_ref().map(User::id);
            let dir = build_root.create(id, false)?;
            Ok(Home {
                stderr: LogFile::create(&dir.dir, "stderr", id)?,
                dir,
                user: user.map(Arc::new),
                _slot: slot,
            })
        };
        Ok(Some(Process::new(key, block(create).await?)))
    }

    /// Stages the action for a worker, and encodes its request.
    async fn prepare_for(&self, process: &Process, plan: Plan) -> Result<Prepared, Abort> {
        let user = process.home.user.clone();
        let staged = self.stage(user.is_none(), None, user).await?;
        block(move || {
            let (start, protocol) = (plan.arguments.start.clone(), plan.protocol);
            let request = plan.request(|path| read(&staged.dir.root, path));
            let request = request.map_err(Abort::Own)?.encode_as(protocol);
            Ok(Prepared {
                staged,
                start,
                protocol,
                request: request.map_err(|error| Abort::Own(error.to_string()))?,
            })
        })
        .await
    }

    /// Runs the action in a worker, and moves its files back afterwards. With `silence`, fails if the worker does nothing
    /// for that time.
    async fn ask(
        &self,
        process: &mut Process,
        prepared: Prepared,
        silence: Option<Duration>,
    ) -> Result<(Staged, Answer), Fault> {
        let Prepared {
            staged,
            start,
            protocol,
            request,
        } = prepared;
        process.begin(self.given(false)).await;
        let staged = move_files(process, staged, false).await?;
        if !process.has_started() {
            let launch = self.launch_of(&process.home, start)?;
            let started = process.start(self.worker, protocol, launch);
            started.map_err(Breach::Io)?;
        }
        let run = self.next.fetch_add(1, Relaxed);
        let logs = [staged.stdout.reader()?, staged.stderr.reader()?];
        let live = process.live();
        let shown = self.job.live.show(run, logs, live.since(process.used));
        let silent = async {
            match silence {
                Some(period) => measure::silence(live, period).await,
                None => pending().await,
            }
        };
        let mut response = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Abort::Stopped.into()),
            answer = timeout(self.job.timeout, process.ask(&request)) => answer.ok().transpose()?,
            () = silent => return Err(Breach::Silent.into()),
        };
        drop(shown);
        let usage = process.measure().await;
        if let Some(response) = &mut response {
            let (stderr, output) = (staged.stderr.writer()?, mem::take(&mut response.output));
            let write = move || {
                let written = File::from(stderr).write_all(&output);
                Ok(written.map_err(|error| Error::io("writing", "stderr", error))?)
            };
            block(write).await?;
        } else {
            // No process may run while the outputs are collected.
            process.stop().await;
        }
        let staged = move_files(process, staged, true).await?;
        process.live().start_turn(None);
        Ok((staged, Answer { response, usage }))
    }

    /// Returns the launch of a worker, without its pipes.
    fn launch_of(&self, home: &Home, argv: Vec<String>) -> Result<Launch, Abort> {
        let id = home.user.as_ref().map(|user| user.id());
        let logs = [home.stderr.writer()?, home.stderr.writer()?];
        Ok(Launch {
            argv,
            ..self.command(&home.dir, false, id, logs)?
        })
    }

    /// Ends a worker that cannot be used any more, and logs why.
    async fn discard(&self, pool: &Pool, process: Process, breach: &Breach) {
        // A breach that concerns files is due to the action: another one may succeed.
        if process.uses == 0 && !matches!(breach, Breach::Files(_)) {
            pool.add_broken(process.key);
        }
        pool.failed.fetch_add(1, Relaxed);
        let (home, uses) = (Arc::clone(&process.home), process.uses);
        process.end().await;
        let (action, stderr) = (self.job.key.action, home.tail());
        tracing::warn!(
            %action, uses, %breach, stderr,
            "a persistent worker failed; the action runs by itself"
        );
    }
}

/// Moves the files of an action to its worker, or back from it if `back`.
async fn move_files(process: &Process, staged: Staged, back: bool) -> Result<Staged, Fault> {
    let home = Arc::clone(&process.home);
    let moved = block(move || {
        let moved = home.move_files(&staged.dir.root, back);
        Ok(moved.and_then(|()| home.trim()).map(|()| staged))
    });
    let moved = moved.await?;
    Ok(moved.map_err(|error| Breach::Files(error.to_string()))?)
}

/// Returns the report of an action that a worker ran.
fn report_of(started: SystemTime, answer: Answer) -> Ended {
    let Answer { response, usage } = answer;
    Ended {
        exit: response
            .as_ref()
            .map_or(KILLED, |it| Exit::Code(it.exit_code)),
        timed_out: response.is_none(),
        stopped: false,
        excess: None,
        refused_processes: 0,
        attempts: NetworkAttempts::default(),
        usage,
        leftovers: Leftovers::default(),
        started,
        ended: SystemTime::now(),
        root: None,
    }
}

/// Reads a flag file.
fn read(root: &OwnedFd, path: &str) -> Result<String, String> {
    let (parent, name) = split_last(path);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = open_beneath(root, parent)
        .and_then(|parent| rustix::fs::openat(parent, name, flags, Mode::empty()));
    let mut text = String::new();
    let read = opened.map_err(io::Error::from).and_then(|file| {
        let mut file = File::from(file).take(MAX_FLAGS);
        file.read_to_string(&mut text)
    });
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("flag file {:?}: {error}", shorten(path))),
    }
}
