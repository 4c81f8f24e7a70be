//! One run of an action: fetch, stage, run, collect, publish.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use gorego_sandbox::{Ended, Launch, LaunchError, Limits};
use gorego_scheduler::Phase;
use gorego_storage::{Digest, Error, Links, Outputs, PinError, Pins, find_outputs};
use reapi::v2::ExecuteResponse;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    NodeWorker, block,
    build_root::ActionDir,
    isolation::{has_overlay, isolation},
    users::User,
};
use crate::{
    Failure, Job,
    abort::Abort,
    collect::{Collected, Sink, collect},
    logs::LogFile,
    publish::{self, Finished, Times},
    stage::{Source, stage},
};

/// The variables whose default is the folder for temporary files of the action.
const TEMPORARY: [&str; 2] = ["HOME", "TMPDIR"];

/// The most processes of an action that runs as a user of its own.
const MAX_PROCESSES: u64 = 4096;

/// An action that runs on a worker.
pub(super) struct Run<'a> {
    pub(super) worker: &'a NodeWorker,
    pub(super) job: &'a Arc<Job>,
    /// The start of the attempt.
    pub(super) start: SystemTime,
    pub(super) stop: &'a CancellationToken,
    pub(super) begin: &'a (dyn Fn(Phase) + Send + Sync),
}

/// The files of an action that is ready to run.
pub(super) struct Staged {
    dir: ActionDir,
    /// The user that the command runs as, if it is not gorego's own. Released with the directory.
    user: Option<User>,
    /// The inputs that are links to blobs.
    linked: HashSet<Digest>,
    stdout: LogFile,
    stderr: LogFile,
}

impl Run<'_> {
    /// Runs the action once, on `copies` of its inputs or on links to them. Returns the response after it is published;
    /// `None` if the action altered its inputs, so that it has to run again on copies.
    pub(super) async fn once(&self, copies: bool) -> Result<Option<ExecuteResponse>, Abort> {
        let mut times = Times::new(self.job.queued, self.start);
        (self.begin)(Phase::Fetch);
        let _pins = self.fetch().await?;
        (self.begin)(Phase::Stage);
        let staged = self.stage(copies).await?;
        self.count_inputs();
        times.fetch_end = SystemTime::now();

        (self.begin)(Phase::Run);
        let ended = self.launch(&staged).await;
        // A command that was stopped or lost may have altered its inputs, too.
        let is_altered = self.altered(&staged).await?;
        let ended = ended?;
        if is_altered {
            return Ok(None);
        }
        (times.start, times.end) = (ended.started, ended.ended);

        (self.begin)(Phase::Collect);
        times.upload_start = SystemTime::now();
        let links = Arc::clone(&self.worker.stores.links);
        let mut finished = self.collect(staged, ended, links).await?;
        (self.begin)(Phase::Publish);
        self.until_stopped(self.publish(&mut finished)).await?;
        let metadata = times.metadata(&self.worker.options.node, &finished.ended);
        let mut response = finished.response(self.job);
        self.until_stopped(self.hold(&response)).await?;
        if let Some(result) = &mut response.result {
            result.execution_metadata = Some(metadata);
        }
        let results = &*self.worker.stores.results;
        let note = publish::put_result(results, self.job, &response).await;
        if let Some(note) = note {
            publish::add_line(&mut response.message, &note);
        }
        Ok(Some(response))
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
            let pinned = self.worker.stores.links.pin(&self.job.inputs.blobs).await;
            pinned.map_err(|error| match error {
                PinError::Missing(missing) => Failure::Missing(missing).into(),
                PinError::Full { .. } => Abort::unmet(error.to_string()),
                PinError::Store(error) => error.into(),
            })
        };
        self.until_stopped(pin).await
    }

    pub(super) async fn stage(&self, copies: bool) -> Result<Staged, Abort> {
        let (job, stop) = (Arc::clone(self.job), self.stop.clone());
        let links = Arc::clone(&self.worker.stores.links);
        let build_root = Arc::clone(&self.worker.build_root);
        let user = self.worker.users.take()?;
        let id = user.as_ref().map(User::id);
        let has_overlay = has_overlay(&self.worker.options, id);
        block(move || {
            let dir = build_root.create(id, has_overlay)?;
            let source = Source {
                links: &*links,
                copies,
                user: id,
                stop: &stop,
            };
            Ok(Staged {
                linked: stage(&job, &dir.root, source)?,
                stdout: LogFile::create(&dir.dir, "stdout", id)?,
                stderr: LogFile::create(&dir.dir, "stderr", id)?,
                dir,
                user,
            })
        })
        .await
    }

    fn count_inputs(&self) {
        let (counts, inputs) = (&self.worker.inputs, &self.job.inputs);
        counts.staged.fetch_add(inputs.entries, Relaxed);
        counts.staged_bytes.fetch_add(inputs.bytes, Relaxed);
    }

    pub(super) async fn launch(&self, staged: &Staged) -> Result<Ended, Abort> {
        let (command, options) = (&self.job.command, &self.worker.options);
        let root = staged.dir.root.try_clone();
        let user = staged.user.as_ref().map(User::id);
        let launch = Launch {
            argv: command.arguments.clone(),
            environment: self.environment(&staged.dir),
            root: root.map_err(|error| Error::io("opening", "root", error))?,
            working_directory: command.working_directory.clone(),
            stdout: staged.stdout.writer()?,
            stderr: staged.stderr.writer()?,
            timeout: self.job.timeout,
            kill_delay: options.kill_delay,
            limits: Limits {
                // As the limit counts the processes of a user, it needs one that runs nothing else.
                processes: user.map(|_| MAX_PROCESSES),
                ..Limits::default()
            },
            user,
            isolation: isolation(options, &staged.dir, user),
        };
        let ended = self.worker.runner.run(launch, self.stop.clone()).await;
        let ended = ended.map_err(|error| match error {
            LaunchError::NotExecutable { .. } => Abort::unmet(error.to_string()),
            LaunchError::NoWorkingDirectory(_) => {
                Abort::invalid("working_directory", error.to_string())
            }
            LaunchError::Isolation(_) | LaunchError::Lost(_) | LaunchError::Io(_) => {
                Abort::Own(error.to_string())
            }
        })?;
        if ended.stopped {
            return Err(Abort::Stopped);
        }
        Ok(ended)
    }

    /// Returns the variables of the command, and the defaults of those that it does not set.
    fn environment(&self, dir: &ActionDir) -> Vec<(String, String)> {
        let mut environment = self.worker.options.environment.clone();
        for name in TEMPORARY {
            let tmp = || match &self.worker.options.isolation {
                Some(_) => "/tmp".to_owned(),
                None => dir.tmp().to_string_lossy().into_owned(),
            };
            environment.entry(name.to_owned()).or_insert_with(tmp);
        }
        for variable in &self.job.command.environment_variables {
            environment.insert(variable.name.clone(), variable.value.clone());
        }
        environment.into_iter().collect()
    }

    /// Returns whether the action altered its inputs. Corrupt blobs are in quarantine then.
    pub(super) async fn altered(&self, staged: &Staged) -> Result<bool, Abort> {
        if staged.linked.is_empty() {
            return Ok(false);
        }
        let links = Arc::clone(&self.worker.stores.links);
        let linked: Vec<Digest> = staged.linked.iter().copied().collect();
        let altered = block(move || Ok(links.altered(&linked))).await?;
        let Some(first) = altered.first() else {
            return Ok(false);
        };
        self.worker.inputs.altered.fetch_add(1, Relaxed);
        self.worker.remember_altering(self.job.action);
        let (action, inputs) = (self.job.action, altered.len());
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
        let runtime = Handle::current();
        // Ends with the semaphore only, which lives as long as the worker.
        let _permit = self.worker.collecting.acquire().await;
        block(move || {
            // Dropped in reverse order: the directory is in the trash before another action gets the user.
            let Staged {
                user,
                dir,
                stdout,
                stderr,
                ..
            } = staged;
            let stdout = stdout.bound(&dir.dir, max_log)?;
            let stderr = stderr.bound(&dir.dir, max_log)?;
            let mut sink = Sink {
                links: &*links,
                runtime: &runtime,
                stop: &stop,
                user: user.as_ref().map(User::id),
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
            let (stdout, stderr) = sink.wait(logs)??;
            sink.max_inline = inline;
            // What was written into an overlay is not in the directory.
            let root = ended.root.as_deref().unwrap_or(&dir.root);
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
        let Some(result) = &response.result else {
            return Ok(());
        };
        let blobs = Arc::clone(&self.worker.stores.blobs);
        let memory = self.worker.trees.clone();
        let outputs = Outputs::of(&self.job.action, result, Arc::clone(&blobs), memory)?;
        match find_outputs(outputs, &*blobs).await {
            Err(error) if error.is_miss() => Err(Abort::Own(error.to_string())),
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
