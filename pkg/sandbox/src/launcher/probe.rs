//! The isolation that the system allows, found by trying it.

use std::{fs::File, os::fd::OwnedFd, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Launcher;
use crate::{Isolation, Launch, LaunchError, Limits, LiveCommand};

/// The time that a trial may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The isolation that the system allows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Level {
    /// Commands can be isolated.
    Full,
    /// They cannot, for this reason, a sentence.
    Plain(String),
}

impl Launcher {
    /// Isolates a command as `isolation` says, up to the point where it would be executed. `root` is its input root, and
    /// `user` its user. Returns the cause if the system does not allow it, and fails for any other cause.
    pub async fn probe(
        &self,
        root: OwnedFd,
        user: Option<u32>,
        isolation: Isolation,
    ) -> Result<Level, LaunchError> {
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
            Err(LaunchError::NotExecutable { .. }) => Ok(Level::Full),
            Err(LaunchError::Isolation(why)) => Ok(Level::Plain(why)),
            Err(error) => Err(error),
            Ok(_) => Ok(Level::Plain(format!(
                "the trial of the isolation took more than {} s",
                PATIENCE.as_secs()
            ))),
        }
    }
}
