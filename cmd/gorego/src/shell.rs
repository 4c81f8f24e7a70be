//! `gorego shell`: the inputs of an action on this machine, from the blobs of a cache, with a shell or the action's
//! command in its sandbox.

mod action;
mod report;
mod run;
mod script;
mod terminal;

use std::{
    env, io,
    path::Path,
    pin::pin,
    process::{self, ExitCode},
    sync::Arc,
    time::Duration,
};

use gorego_config::LoadedConfig;
use gorego_execution::{Job, LocalDir, LocalError, Options, read_job};
use gorego_sandbox::{Launcher, has_users};
use gorego_storage::Error;
use gorego_storage_remote::RemoteStore;
use rustix::{stdio::stdin, termios::isatty};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use self::{action::ActionName, run::Started};
use crate::{
    cli::Shell,
    execution::{first_user, options, permitted, users},
    print, remote,
    terminal::Load,
};

/// The exit status if no program was started, as `env` and container tools have it.
const EXIT_FAILED: u8 = 125;

/// The most directories of earlier runs whose names are tried.
const MAX_NAMES: u32 = 1000;

/// Opens a shell or runs a command. Returns its exit status.
pub(crate) fn run(shell: &Shell, load: Load<'_>) -> ExitCode {
    match start(shell, load) {
        Ok(status) => ExitCode::from(status),
        Err(problems) => {
            problems.lines().for_each(|line| print(&line));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn start(shell: &Shell, load: Load<'_>) -> Result<u8, String> {
    let action = ActionName::parse(&shell.action)?;
    if !shell.run && shell.program.is_empty() && !isatty(stdin()) {
        return Err(
            "standard input is not a terminal; accepted: --run, or `-- PROGRAM ARGUMENT...`"
                .to_owned(),
        );
    }
    let loaded = load()?;
    let launcher = Launcher::start(None);
    let launcher =
        launcher.map_err(|why| format!("cannot start the launcher of actions: {why}"))?;
    let runtime = Runtime::new().map_err(|why| format!("failed to start the runtime: {why}"))?;
    let session = Session {
        shell,
        loaded: &loaded,
        launcher,
    };
    let ended = runtime.block_on(session.until_signal(&action));
    // A read of standard input may still block.
    runtime.shutdown_background();
    ended
}

/// One call of the command.
struct Session<'a> {
    shell: &'a Shell,
    loaded: &'a LoadedConfig,
    launcher: Launcher,
}

/// An action in its directory.
struct Staged {
    job: Arc<Job>,
    dir: LocalDir,
    options: Options,
    /// The user that it runs as, if it is not this one.
    user: Option<u32>,
}

impl Session<'_> {
    /// Runs until the program ends. After `SIGINT`, `SIGTERM` or `SIGHUP`, everything is ended and removed; a second
    /// signal ends at once.
    async fn until_signal(&self, action: &ActionName) -> Result<u8, String> {
        let mut signals =
            Signals::handle().map_err(|why| format!("cannot handle signals: {why}"))?;
        let stop = CancellationToken::new();
        let mut work = pin!(self.work(action, &stop));
        let number = tokio::select! {
            ended = &mut work => return ended,
            number = signals.next() => number,
        };
        stop.cancel();
        tokio::select! {
            _ = &mut work => {}
            _ = signals.next() => {}
        }
        Ok(128 + number)
    }

    async fn work(&self, action: &ActionName, stop: &CancellationToken) -> Result<u8, String> {
        let blobs = remote::open(&self.shell.server, &self.loaded.config)?;
        let options = self.options();
        let read = async {
            let digest = action.digest(&blobs).await?;
            let job = read_job(&options, &blobs, &digest).await;
            job.map_err(|failure| report::failure(&failure))
        };
        let job = stop.run_until_cancelled(read).await.ok_or("stopped")??;
        let user = self.user();
        let dir = self.create_dir(user)?;
        let mut staged = Staged {
            job,
            dir,
            options,
            user,
        };
        let ended = self.run_in(&mut staged, &blobs, stop).await;
        if self.shell.keep.is_some() {
            print(&format_args!("kept {}", staged.dir.path().display()));
            return ended;
        }
        let removed = staged.dir.remove().await;
        ended.and_then(|status| removed.map(|()| status).map_err(|why| why.to_string()))
    }

    /// Isolates the action, stages it and runs a program. Returns its exit status.
    async fn run_in(
        &self,
        staged: &mut Staged,
        blobs: &RemoteStore,
        stop: &CancellationToken,
    ) -> Result<u8, String> {
        let dir = &staged.dir;
        let probe = async |options: &Options| Ok(dir.probe(options, &self.launcher).await?);
        let level = permitted(self.loaded, &mut staged.options, probe, |line| print(&line)).await;
        let level = level.map_err(|why| why.to_string())?;
        let done = dir.stage(&staged.job, blobs, stop).await;
        done.map_err(|why| error(&why))?;
        let started = Started {
            launcher: &self.launcher,
            staged,
            stop,
        };
        if self.shell.run {
            report::level(&level, staged);
            return started.command().await;
        }
        let script = started.write_script()?;
        if !isatty(stdin()) {
            report::level(&level, staged);
            return started.program(&self.shell.program).await;
        }
        report::banner(staged, &level, &script, self.shell.keep.is_some());
        started.in_terminal(&self.shell.program).await
    }

    /// Returns the settings of an executor with this configuration that takes any action, as far as it is well formed.
    fn options(&self) -> Options {
        Options {
            max_timeout: Duration::MAX,
            max_input_bytes: u64::MAX,
            ignore_unknown_platform: true,
            ..options(&self.loaded.config)
        }
    }

    /// Returns the user that the action runs as, if it is not this one: for root, one that no executor's action has.
    fn user(&self) -> Option<u32> {
        let user = first_user(&self.loaded.config)?.saturating_add(users(&self.loaded.config));
        has_users(&(user..user.saturating_add(1))).then_some(user)
    }

    fn create_dir(&self, user: Option<u32>) -> Result<LocalDir, String> {
        let create = |path: &Path| LocalDir::create(path, user);
        if let Some(path) = &self.shell.keep {
            return create(path).map_err(|why| error(&why));
        }
        let mut number = 0;
        loop {
            let name = format!("gorego-shell-{}-{number}", process::id());
            match create(&env::temp_dir().join(name)) {
                // Left by a process with the same number that was killed.
                Err(why) if is_taken(&why) && number < MAX_NAMES => number += 1,
                created => return created.map_err(|why| error(&why)),
            }
        }
    }
}

fn is_taken(error: &LocalError) -> bool {
    let LocalError::Directory(error) = error else {
        return false;
    };
    matches!(&**error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
}

fn error(error: &LocalError) -> String {
    match error {
        LocalError::Failure(failure) => report::failure(failure),
        error => error.to_string(),
    }
}

/// The signals that end the command.
struct Signals([(u8, Signal); 3]);

impl Signals {
    /// Handles the signals from now on.
    fn handle() -> io::Result<Self> {
        let handle = |kind: SignalKind| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            Ok::<_, io::Error>((number, signal(kind)?))
        };
        Ok(Self([
            handle(SignalKind::interrupt())?,
            handle(SignalKind::terminate())?,
            handle(SignalKind::hangup())?,
        ]))
    }

    /// Returns the number of the next signal.
    async fn next(&mut self) -> u8 {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.1.recv() => interrupt.0,
            _ = terminate.1.recv() => terminate.0,
            _ = hangup.1.recv() => hangup.0,
        }
    }
}
