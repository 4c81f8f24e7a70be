//! The isolation that the system allows, found by trying it.

use std::{fs::File, os::fd::OwnedFd, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Launcher;
use crate::{Isolation, Launch, LaunchError, Limits, LiveCommand, Means};

/// The time that a trial may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The isolation that the system allows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Level {
    /// Commands can have a root of their own.
    Full,
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
            Self::Processes(why) | Self::Plain(why) => Some(why),
        }
    }
}

impl Launcher {
    /// Isolates a command as `isolation` says, with a root of its own, up to the point where it would be executed; if
    /// the system does not allow it, without that root. `root` is its input root, and `user` its user. Returns the best
    /// level that the system allows, and fails for any other cause.
    pub async fn probe(
        &self,
        root: OwnedFd,
        user: Option<u32>,
        isolation: Isolation,
    ) -> Result<Level, LaunchError> {
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
        let null = || File::options().write(true).open("/dev/null");
        let launch = Launch {
            // No program, so that the trial needs none.
            argv: vec!["/".to_owned()],
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
            live: LiveCommand::default(),
        };
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
}
