//! The isolation that the system allows, found by trying it.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::PathBuf,
    time::Duration,
};

use rustix::fs::{MemfdFlags, memfd_create};
use tokio_util::sync::CancellationToken;

use super::Launcher;
use crate::{Exit, Isolation, Launch, LaunchError, Limits, LiveCommand, Means};

/// The time that a trial may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The exit code of the trial of a program.
const CODE: i32 = 17;
/// The most bytes that are read of what a program says.
const MAX_SAID: usize = 300;

/// The isolation that the system allows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Level {
    /// Commands can have a root of their own.
    Full,
    /// They can be isolated by this program.
    External(PathBuf),
    /// Only their processes and their network can be isolated, for this reason, a sentence.
    Processes(String),
    /// They cannot be isolated, for this reason, a sentence.
    Plain(String),
}

impl Level {
    /// Returns why commands cannot be isolated further, a sentence.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Full => None,
            Self::External(_) => {
                Some("the program of execution.sandbox.binary_path hides no files")
            }
            Self::Processes(why) | Self::Plain(why) => Some(why),
        }
    }
}

impl Launcher {
    /// Tries to isolate a command as `isolation` says, up to its execution, and again without a root of its own if the
    /// system does not allow that. With a program, lets it run a shell. `root` is its input root, and `user` its user.
    /// Returns the best level that the system allows, and fails for any other cause.
    pub async fn probe(
        &self,
        root: OwnedFd,
        user: Option<u32>,
        isolation: Isolation,
    ) -> Result<Level, LaunchError> {
        if let Means::Program(program) = &isolation.by {
            let program = program.clone();
            return Ok(match self.failure(root, user, isolation).await? {
                None => Level::External(program),
                Some(why) => Level::Plain(why),
            });
        }
        let mut trial = Isolation {
            by: Means::Root,
            ..isolation
        };
        let Some(why) = self.refusal(root.try_clone()?, user, trial.clone()).await? else {
            return Ok(Level::Full);
        };
        trial.by = Means::Processes;
        Ok(match self.refusal(root, user, trial).await? {
            None => Level::Processes(why),
            Some(_) => Level::Plain(why),
        })
    }

    /// Returns why the system does not allow this isolation; `None` if it does.
    async fn refusal(
        &self,
        root: OwnedFd,
        user: Option<u32>,
        isolation: Isolation,
    ) -> Result<Option<String>, LaunchError> {
        // A directory, which cannot be executed: so the trial needs no program.
        let launch = trial(&["/"], root, user, isolation)?;
        match self.run(launch, CancellationToken::new()).await {
            Err(LaunchError::NotExecutable { .. }) => Ok(None),
            Err(LaunchError::Isolation(why)) => Ok(Some(why)),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(format!(
                "the trial of the isolation took more than {} s",
                PATIENCE.as_secs()
            ))),
        }
    }

    /// Returns why a program cannot isolate a command; `None` if it can.
    async fn failure(
        &self,
        root: OwnedFd,
        user: Option<u32>,
        isolation: Isolation,
    ) -> Result<Option<String>, LaunchError> {
        let errors =
            File::from(memfd_create("errors", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
        let script = format!("exit {CODE}");
        let mut launch = trial(&["/bin/sh", "-c", &script], root, user, isolation)?;
        launch.stderr = errors.try_clone()?.into();
        let exit = match self.run(launch, CancellationToken::new()).await {
            Err(LaunchError::Isolation(why)) => return Ok(Some(why)),
            ended => ended?.exit,
        };
        if exit == Exit::Code(CODE) {
            return Ok(None);
        }
        let mut said = vec![0; MAX_SAID];
        let length = errors.read_at(&mut said, 0)?;
        said.truncate(length);
        let said = String::from_utf8_lossy(&said);
        let said = said.lines().next().unwrap_or_default().trim();
        Ok(Some(format!(
            "it ended with exit code {}: {said}",
            exit.shell_code()
        )))
    }
}

/// Returns the launch of a trial.
fn trial(
    argv: &[&str],
    root: OwnedFd,
    user: Option<u32>,
    isolation: Isolation,
) -> io::Result<Launch> {
    let null = || File::options().write(true).open("/dev/null");
    Ok(Launch {
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        environment: Vec::new(),
        root,
        working_directory: String::new(),
        stdout: null()?.into(),
        stderr: null()?.into(),
        stdin: None,
        has_terminal: false,
        timeout: PATIENCE,
        kill_delay: Duration::ZERO,
        limits: Limits::default(),
        scratch: None,
        user,
        isolation: Some(isolation),
        confined_to: None,
        live: LiveCommand::default(),
    })
}
