//! One run of an action: fetch, stage, run, collect, publish.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::SystemTime,
};

use gorego_sandbox::{Ended, Excess, LaunchError};
use gorego_scheduler::Phase;
use gorego_storage::{Digest, Links, PinError, Pins};
use reapi::v2::ExecuteResponse;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    NodeWorker, block,
    build_root::ActionDir,
    command::clone,
    isolation::{has_overlay, is_closed},
    trees::Tree,
    users::User,
};
use crate::{
    Failure, Job,
    abort::Abort,
    collect::{Collected, Moves, Sink, collect},
    logs::LogFile,
    publish::{self, Finished, Times},
    stage::{
        Source,
        parents::{self, Places},
        stage,
    },
};

/// An action that runs on a worker.
pub(super) struct Run<'a> {
    pub(super) worker: &'a NodeWorker,
    pub(super) job: &'a Arc<Job>,
    /// The number of the next run of the command.
    pub(super) next: AtomicU32,
    /// The start of the attempt.
    pub(super) start: SystemTime,
    /// Set if nothing else runs, after the action ran out of memory.
    pub(super) alone: bool,
    pub(super) stop: &'a CancellationToken,
    pub(super) begin: &'a (dyn Fn(Phase) + Send + Sync),
}

/// The form in which an action gets its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supply {
    /// A prepared tree where there is one, else links.
    Tree,
    /// Links to blobs, where possible.
    Links,
    /// Copies of blobs.
    Copies,
}

/// The files of an action that is ready to run.
pub(super) struct Staged {
    pub(super) dir: ActionDir,
    /// The prepared tree that holds its inputs. The directory holds them otherwise.
    tree: Option<Arc<Tree>>,
    has_overlay: bool,
    /// The user that the command runs as, if it is not gorego's own. Released with the directory.
    user: Option<Arc<User>>,
    /// The inputs that are links to blobs.
    linked: HashSet<Digest>,
    pub(super) stdout: LogFile,
    pub(super) stderr: LogFile,
}

impl Run<'_> {
    /// Runs the action once. Returns the response after it is published;
    /// `None` if the action altered its inputs, so that it has to run again on copies.
    pub(super) async fn once(&self, supply: Supply) -> Result<Option<ExecuteResponse>, Abort> {
        let mut times = Times::new(self.job.queued, self.start);
        (self.begin)(Phase::Fetch);
        let prepared = &self.worker.prepared;
        let losses = self.worker.stores.links.losses();
        let mut tree = match supply {
            Supply::Tree => prepared.get(&self.job.inputs, losses),
            Supply::Links | Supply::Copies => None,
        };
        let pins = match &tree {
            // It has pinned them.
            Some(_) => None,
            None => Some(Arc::new(self.fetch().await?)),
        };
        (self.begin)(Phase::Stage);
        if let Some(pins) = &pins
            && supply == Supply::Tree
            && prepared.wants(&self.job.inputs)
        {
            tree = Some(self.prepare(Arc::clone(pins), losses).await?);
        }
        let user = self.worker.users.take()?.map(Arc::new);
        let staged = self.stage(supply == Supply::Copies, tree, user).await?;
        self.count_inputs();
        times.fetch_end = SystemTime::now();

        (self.begin)(Phase::Run);
        let ended = self.launch(&staged).await;
        // A command that was stopped or lost may have altered its inputs, too.
        let is_altered = self.altered(&staged).await?;
        if !is_altered {
            self.keep_if_failed(&staged, &ended).await;
        }
        let ended = ended?;
        if is_altered {
            return Ok(None);
        }
        self.check_memory(&ended)?;
        self.finish(times, staged, ended).await.map(Some)
    }

    /// Collects and publishes what a command left. Returns the response.
    pub(super) async fn finish(
        &self,
        mut times: Times,
        staged: Staged,
        ended: Ended,
    ) -> Result<ExecuteResponse, Abort> {
        (times.start, times.end) = (ended.started, ended.ended);

        (self.begin)(Phase::Collect);
        times.upload_start = SystemTime::now();
        let links = Arc::clone(&self.worker.stores.links);
        let mut finished = self.collect(staged, ended, links).await?;
        (self.begin)(Phase::Publish);
        self.until_stopped(self.publish(&mut finished)).await?;
        let metadata = times.metadata(&self.worker.options.node, &finished.ended);
        let mut response = finished.response(self.job, self.alone);
        self.until_stopped(self.hold(&response)).await?;
        if let Some(result) = &mut response.result {
            result.execution_metadata = Some(metadata);
        }
        if self.job.entry.is_none() {
            let results = &*self.worker.stores.results;
            let note = publish::put_result(results, self.job, &response).await;
            if let Some(note) = note {
                publish::add_line(&mut response.message, &note);
            }
        }
        Ok(response)
    }

    /// Waits for a step that writes nothing which has to be undone.
    async fn until_stopped<T>(
        &self,
        step: impl Future<Output = Result<T, Abort>>,
    ) -> Result<T, Abort> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Abort::Stopped),
            done = step => done,
        }
    }

    pub(super) async fn fetch(&self) -> Result<Pins, Abort> {
        let pin = async {
            let blobs = self.job.inputs.all_blobs().await;
            let pinned = self.worker.stores.links.pin(&blobs).await;
            pinned.map_err(|error| match error {
                PinError::Missing(missing) => Failure::Missing(missing).into(),
                PinError::Full { .. } => Abort::unmet(error.to_string()),
                PinError::Store(error) => error.into(),
            })
        };
        self.until_stopped(pin).await
    }

    /// Prepares the tree of the inputs, for this action and for later ones.
    async fn prepare(&self, pins: Arc<Pins>, losses: u64) -> Result<Arc<Tree>, Abort> {
        let (job, stop) = (Arc::clone(self.job), self.stop.clone());
        let links = Arc::clone(&self.worker.stores.links);
        let build_root = Arc::clone(&self.worker.build_root);
        let prepare = move || {
            let dir = build_root.create(None, false)?;
            let source = Source {
                links: &*links,
                copies: false,
                user: None,
                stop: &stop,
            };
            stage(&job, &dir.root, source)?;
            Ok(Arc::new(Tree::new(dir, pins, &job.inputs, losses)))
        };
        let tree = block(prepare).await?;
        self.worker.prepared.add(&tree);
        Ok(tree)
    }

    pub(super) async fn stage(
        &self,
        copies: bool,
        tree: Option<Arc<Tree>>,
        user: Option<Arc<User>>,
    ) -> Result<Staged, Abort> {
        let (job, stop) = (Arc::clone(self.job), self.stop.clone());
        let links = Arc::clone(&self.worker.stores.links);
        let build_root = Arc::clone(&self.worker.build_root);
        let id = user.as_ref().map(|user| user.id());
        let has_overlay = tree.is_some() || has_overlay(&self.worker.options, id);
        block(move || {
            let dir = build_root.create(id, has_overlay)?;
            let source = Source {
                links: &*links,
                copies,
                user: id,
                stop: &stop,
            };
            let (mut linked, mut upper) = (HashSet::new(), None);
            match &tree {
                Some(_) => upper = Some(dir.upper()?),
                None => linked = stage(&job, &dir.root, source)?,
            }
            let places = Places {
                root: tree.as_ref().map_or(&dir.root, |tree| tree.root()),
                upper: upper.as_ref(),
                user: id,
            };
            parents::create(places, &job.command)?;
            Ok(Staged {
                linked,
                tree,
                has_overlay,
                stdout: LogFile::create(&dir.dir, "stdout", id)?,
                stderr: LogFile::create(&dir.dir, "stderr", id)?,
                dir,
                user,
            })
        })
        .await
    }

    pub(super) fn count_inputs(&self) {
        let (counts, inputs) = (&self.worker.inputs, &self.job.inputs);
        counts.staged.fetch_add(inputs.entries, Relaxed);
        counts.staged_bytes.fetch_add(inputs.bytes, Relaxed);
    }

    pub(super) async fn launch(&self, staged: &Staged) -> Result<Ended, Abort> {
        // As often as the phase begins.
        let run = self.next.fetch_add(1, Relaxed);
        let id = staged.user.as_ref().map(|user| user.id());
        let logs = [staged.stdout.writer()?, staged.stderr.writer()?];
        let mut launch = self.command(&staged.dir, staged.has_overlay, id, logs)?;
        if let Some(tree) = &staged.tree {
            launch.root = clone(tree.root())?;
        }
        let logs = [staged.stdout.reader()?, staged.stderr.reader()?];
        let _shown = self.job.live.show(run, logs, launch.live.clone());
        let ended = self.worker.runner.run(launch, self.stop.clone()).await;
        let ended = ended.map_err(|error| match error {
            LaunchError::NotExecutable { .. } => Abort::unmet(error.to_string()),
            LaunchError::NoWorkingDirectory(_) => {
                Abort::invalid("working_directory", error.to_string())
            }
            LaunchError::Isolation(why) if let Some(tree) = &staged.tree => {
                self.worker.prepared.refuse(tree);
                Abort::NoTree(why)
            }
            LaunchError::Isolation(_) | LaunchError::Lost(_) | LaunchError::Io(_) => {
                Abort::Own(error.to_string())
            }
        })?;
        if ended.stopped {
            return Err(Abort::Stopped);
        }
        let peak = match ended.excess {
            Some(Excess::Memory { used, .. }) => used,
            _ => ended.usage.peak_bytes,
        };
        self.worker.memory.record(&self.job.kind, peak);
        Ok(ended)
    }

    /// Fails if the action ran out of memory, unless it ran alone, or its time was over, too.
    fn check_memory(&self, ended: &Ended) -> Result<(), Abort> {
        let Some(excess @ Excess::Memory { .. }) = &ended.excess else {
            return Ok(());
        };
        if self.alone || ended.timed_out {
            return Ok(());
        }
        let (action, why) = (self.job.key.action, publish::describe(excess));
        tracing::warn!(%action, "{why}; the action runs once more, alone");
        Err(Abort::OutOfMemory(why))
    }

    /// Returns whether the action altered its inputs. Corrupt blobs are in quarantine then.
    pub(super) async fn altered(&self, staged: &Staged) -> Result<bool, Abort> {
        // Another user can neither write to the blobs nor change their modes.
        if staged.linked.is_empty() || staged.user.is_some() {
            return Ok(false);
        }
        let links = Arc::clone(&self.worker.stores.links);
        let linked: Vec<Digest> = staged.linked.iter().copied().collect();
        let altered = block(move || Ok(links.altered(&linked))).await?;
        let Some(first) = altered.first() else {
            return Ok(false);
        };
        self.worker.inputs.altered.fetch_add(1, Relaxed);
        self.worker.remember_altering(self.job.key.action);
        let (action, inputs) = (self.job.key.action, altered.len());
        tracing::warn!(
            %action, inputs, %first,
            "inputs were altered while an action ran; it runs again on copies"
        );
        Ok(true)
    }

    /// Collects the outputs into `links`.
    pub(super) async fn collect(
        &self,
        staged: Staged,
        ended: Ended,
        links: Arc<dyn Links>,
    ) -> Result<Finished, Abort> {
        let (job, stop) = (Arc::clone(self.job), self.stop.clone());
        let options = &self.worker.options;
        let (max_bytes, max_inline) = (options.max_output_bytes, options.max_inline_bytes);
        let max_log = options.max_log_bytes;
        let is_closed = is_closed(options, job.network);
        let runtime = Handle::current();
        // Ends with the semaphore only, which lives as long as the worker.
        let _permit = self.worker.collecting.acquire().await;
        block(move || {
            // Dropped in reverse order: the directory is in the trash before another action gets the user.
            let Staged {
                user,
                dir,
                has_overlay,
                stdout,
                stderr,
                ..
            } = staged;
            let stdout = stdout.bound(&dir.dir, max_log)?;
            let stderr = stderr.bound(&dir.dir, max_log)?;
            let upper = has_overlay.then(|| dir.upper()).transpose()?;
            // What was written into an overlay is not in the directory. No process outlives an isolated command.
            let (root, moves) = match (&ended.root, &upper) {
                (Some(shown), Some(upper)) if is_closed => (&**shown, Moves::Upper(upper)),
                (Some(shown), Some(_)) => (&**shown, Moves::No),
                (Some(_), None) if is_closed => (&dir.root, Moves::Root),
                (_, None) | (None, _) => (&dir.root, Moves::No),
            };
            let mut sink = Sink {
                links: &*links,
                runtime: &runtime,
                stop: &stop,
                moves,
                user: user.as_ref().map(|user| user.id()),
                max_bytes,
                max_inline,
            };
            let mut inline = max_inline;
            let function = job.function();
            let logs = async {
                let out = stdout.store(function, &*links, job.inline_stdout, &mut inline);
                let out = out.await?;
                let err = stderr.store(function, &*links, job.inline_stderr, &mut inline);
                Ok::<_, Abort>((out, err.await?))
            };
            let (stdout, stderr) = sink.wait_here(logs)??;
            sink.max_inline = inline;
            let outputs = match collect(&job, root, sink) {
                Err(Abort::Final(failure)) => Err(failure),
                collected => Ok(collected?),
            };
            Ok(Finished {
                ended,
                outputs,
                stdout,
                stderr,
            })
        })
        .await
    }

    /// Extends the leases of the outputs, of which the first were stored a while ago. Fails if one is missing.
    async fn hold(&self, response: &ExecuteResponse) -> Result<(), Abort> {
        let (blobs, trees) = (&self.worker.stores.blobs, &self.worker.trees);
        match publish::hold(blobs, trees, self.job.key.action, response).await {
            // Later ones displaced it.
            Err(error) if error.is_miss() => Err(Abort::NoSpace(format!(
                "there is no room for all outputs of the action: {error}"
            ))),
            held => Ok(held?),
        }
    }

    async fn publish(&self, finished: &mut Finished) -> Result<(), Abort> {
        let Ok(Collected { blobs, .. }) = &mut finished.outputs else {
            return Ok(());
        };
        publish::put_blobs(&*self.worker.stores.blobs, std::mem::take(blobs)).await
    }
}
