//! The directory of a local action.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use gorego_sandbox::{Ended, Isolation, Launch, LaunchError, Launcher, Level, Limits, LiveCommand};
use gorego_storage::BlobStore;
use rustix::{
    fs::{CWD, Gid, Mode},
    io::Errno,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{LocalError, LocalResult, inputs::FetchedInputs};
use crate::{
    Failure, Job, Network, Options,
    abort::Abort,
    beneath::{DIRECTORY, make_child},
    collect::{Moves, Sink, collect},
    environment::environment,
    logs::Log,
    publish::Finished,
    stage::{
        Source,
        parents::{self, Places},
        stage,
    },
    worker::{block, build_root, isolation_with},
};

/// The folder of the input root.
const ROOT: &str = "root";
/// The folder for temporary files.
const TMP: &str = "tmp";
/// The folder into which the inputs are fetched.
const BLOBS: &str = "blobs";

/// The mode of the directory: only its owner has access, and the action's user to the files in it.
const PRIVATE: Mode = Mode::RWXU;
const PASSABLE: Mode = Mode::from_bits_retain(0o710);
const PUBLIC: Mode = Mode::from_bits_retain(0o755);

/// The directory of an action that is run outside an executor: its input root and its folder for temporary files. It
/// stays until it is removed.
#[derive(Debug)]
pub struct LocalDir {
    path: PathBuf,
    dir: OwnedFd,
    root: OwnedFd,
    user: Option<u32>,
}

impl LocalDir {
    /// Creates the directory at `path`, which must not exist yet, for an action that runs as `user`; as this one if
    /// there is none. Blocks.
    pub fn create(path: &Path, user: Option<u32>) -> Result<Self, LocalError> {
        let error = |error| LocalError::io("creating", path, error);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(error)?;
        // Actions must not depend on the directory in which the caller was.
        let path = fs::canonicalize(path).map_err(error)?;
        let open = || -> Result<_, Errno> {
            let dir = rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty())?;
            if let Some(user) = user {
                rustix::fs::fchown(&dir, None, Some(Gid::from_raw(user)))?;
            }
            // Whatever the umask.
            rustix::fs::fchmod(&dir, user.map_or(PRIVATE, |_| PASSABLE))?;
            let root = make_child(&dir, ROOT, PUBLIC, user)?;
            make_child(&dir, TMP, PUBLIC, user)?;
            Ok((dir, root))
        };
        let (dir, root) = open().map_err(|errno| {
            let _ = fs::remove_dir_all(&path);
            error(errno.into())
        })?;
        Ok(Self {
            path,
            dir,
            root,
            user,
        })
    }

    /// Returns the absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the input root.
    pub fn root(&self) -> PathBuf {
        self.path.join(ROOT)
    }

    /// Returns the path of the folder for temporary files.
    pub fn tmp(&self) -> PathBuf {
        self.path.join(TMP)
    }

    /// Fetches the inputs and builds the tree. All files are copies. Nothing is left of a fetch that fails, once the
    /// directory is removed.
    pub async fn stage(
        &self,
        job: &Arc<Job>,
        blobs: &dyn BlobStore,
        stop: &CancellationToken,
    ) -> Result<(), LocalError> {
        self.check_space(job)?;
        let error = |errno: Errno| LocalError::io("creating", self.path.join(BLOBS), errno.into());
        let at = make_child(&self.dir, BLOBS, PRIVATE, None).map_err(error)?;
        let digests = job.inputs.all_blobs().await;
        let fetch = FetchedInputs::fetch(blobs, &digests, at);
        let fetched = stop.run_until_cancelled(fetch).await;
        let inputs = fetched.ok_or(LocalError::Stopped)??;
        let (job, stop) = (Arc::clone(job), stop.clone());
        let (user, root) = (self.user, self.descriptor(&self.root)?);
        block(move || {
            let source = Source {
                links: &*inputs,
                copies: false,
                user,
                stop: &stop,
            };
            stage(&job, &root, source)?;
            let places = Places {
                root: &root,
                upper: None,
                user,
            };
            parents::create(places, &job.command)?;
            inputs.remove(&digests)
        })
        .await?;
        let folder = self.path.join(BLOBS);
        fs::remove_dir(&folder).map_err(|error| LocalError::io("removing", folder, error))
    }

    /// Fails if the tree does not fit on the disk.
    fn check_space(&self, job: &Job) -> Result<(), LocalError> {
        let stat = rustix::fs::fstatvfs(&self.dir);
        let stat = stat.map_err(|errno| LocalError::io("reading", &self.path, errno.into()))?;
        let (free, needed) = (
            stat.f_bavail.saturating_mul(stat.f_frsize),
            job.inputs.bytes,
        );
        if needed <= free {
            return Ok(());
        }
        let path = self.path.display();
        let why =
            format!("the inputs have {needed} bytes, and the file system of {path} {free} free");
        Err(Failure::NoSpace(why).into())
    }

    /// Finds out by trying whether the system allows the isolation that `options` ask for.
    pub async fn probe(
        &self,
        options: &Options,
        launcher: &Launcher,
    ) -> Result<Level, LaunchError> {
        match self.isolation(options, Network::Usual) {
            Some(isolation) => {
                let root = self.root.try_clone()?;
                launcher.probe(root, self.user, isolation).await
            }
            None => Ok(Level::Plain("isolation is switched off".to_owned())),
        }
    }

    fn isolation(&self, options: &Options, network: Network) -> Option<Isolation> {
        // Without an overlay, as the inputs are copies, which may be changed.
        isolation_with(options, self.tmp(), None, network)
    }

    /// Returns the environment of the command.
    pub fn environment(&self, job: &Job, options: &Options) -> Vec<(String, String)> {
        environment(&job.command, options, &self.tmp())
    }

    /// Returns the launch of the command, as an executor with these `options` has it.
    pub fn launch(
        &self,
        job: &Job,
        options: &Options,
        [stdout, stderr]: [OwnedFd; 2],
    ) -> Result<Launch, LocalError> {
        Ok(Launch {
            argv: job.command.arguments.clone(),
            environment: self.environment(job, options),
            root: self.descriptor(&self.root)?,
            working_directory: job.command.working_directory.clone(),
            stdout,
            stderr,
            stdin: None,
            has_terminal: false,
            timeout: job.timeout,
            kill_delay: options.kill_delay,
            limits: Limits::default(),
            scratch: None,
            user: self.user,
            isolation: self.isolation(options, job.network),
            confined_to: options.confined_to(self.path.clone()),
            live: LiveCommand::default(),
        })
    }

    /// Returns the result of a command that has ended. Outputs stay where they are.
    pub async fn result(
        &self,
        job: &Arc<Job>,
        ended: Ended,
        stop: &CancellationToken,
    ) -> Result<LocalResult, LocalError> {
        let (root, dir) = (self.descriptor(&self.root)?, self.descriptor(&self.dir)?);
        let (job, stop, user) = (Arc::clone(job), stop.clone(), self.user);
        let runtime = Handle::current();
        let collected = block(move || {
            let sink = Sink {
                links: &FetchedInputs::none(dir),
                runtime: &runtime,
                stop: &stop,
                moves: Moves::No,
                user,
                max_bytes: None,
                max_inline: 0,
            };
            let outputs = match collect(&job, &root, sink) {
                Err(Abort::Final(failure)) => Err(failure),
                collected => Ok(collected?),
            };
            let finished = Finished {
                ended,
                outputs,
                stdout: Log::default(),
                stderr: Log::default(),
            };
            Ok(LocalResult::of(
                &job.command,
                finished.response(&job, false),
            ))
        });
        Ok(collected.await?)
    }

    /// Deletes the directory, when no process of the action is left.
    pub async fn remove(self) -> Result<(), LocalError> {
        Ok(build_root::remove(self.dir, &self.path).await?)
    }

    fn descriptor(&self, of: &OwnedFd) -> Result<OwnedFd, LocalError> {
        let copy = of.try_clone();
        copy.map_err(|error| LocalError::io("opening", &self.path, error))
    }
}
