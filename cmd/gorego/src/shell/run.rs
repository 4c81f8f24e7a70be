//! Programs in the sandbox of a staged action.

use std::{
    env,
    fs::File,
    io::{self, PipeReader},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use gorego_sandbox::{Ended, Launch, LaunchError, Launcher};
use rustix::stdio::{stderr, stdout};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::{Staged, error, report, script, terminal::Terminal};
use crate::print;

/// The shell where the user's own cannot be executed.
const SHELL: &str = "/bin/sh";
/// The name of the script that runs the action's command, in the folder for temporary files.
const SCRIPT: &str = "gorego-run";
/// The input root and the folder for temporary files of an action with a root of its own, as it sees them.
const ISOLATED: [&str; 2] = ["/gorego/root", "/tmp"];

/// The parts from which a program is started.
pub(super) struct Started<'a> {
    pub(super) launcher: &'a Launcher,
    pub(super) staged: &'a Staged,
    pub(super) stop: &'a CancellationToken,
}

impl Started<'_> {
    /// Runs the command of the action and prints its result. Returns its exit status.
    pub(super) async fn command(&self) -> Result<u8, String> {
        let (stdio, copies) = pipes()?;
        let launch = self.launch(stdio)?;
        let ended = self.run(launch).await.map_err(|why| why.to_string());
        self.drain(copies).await;
        let Staged { job, dir, .. } = self.staged;
        let result = dir.result(job, ended?, self.stop).await;
        let result = result.map_err(|why| error(&why))?;
        report::result(&result);
        if result.failure.is_some() && result.exit_code == 0 {
            return Ok(super::EXIT_FAILED);
        }
        Ok(status(result.exit_code))
    }

    /// Runs another program, without a terminal. Returns its exit status.
    pub(super) async fn program(&self, argv: &[String]) -> Result<u8, String> {
        let (stdio, copies) = pipes()?;
        let launch = Launch {
            argv: argv.to_vec(),
            timeout: Duration::MAX,
            ..self.launch(stdio)?
        };
        let ended = self.run(launch).await;
        self.drain(copies).await;
        let ended = ended.map_err(|why| why.to_string())?;
        Ok(status(ended.exit.shell_code()))
    }

    /// Runs a program, or a shell if there is none, in a terminal of its own that is shown in that of the user. Returns
    /// its exit status.
    pub(super) async fn in_terminal(&self, argv: &[String]) -> Result<u8, String> {
        let ended = if argv.is_empty() {
            let shell = env::var("SHELL")
                .ok()
                .filter(|shell| shell.starts_with('/'));
            let shell = shell.unwrap_or_else(|| SHELL.to_owned());
            match self.show(&[shell]).await {
                Err(Shown::Launch(why @ LaunchError::NotExecutable { .. })) => {
                    print(&format_args!("{why}; {SHELL} is started instead"));
                    self.show(&[SHELL.to_owned()]).await
                }
                ended => ended,
            }
        } else {
            self.show(argv).await
        };
        let ended = ended.map_err(|why| why.to_string())?;
        Ok(status(ended.exit.shell_code()))
    }

    async fn show(&self, argv: &[String]) -> Result<Ended, Shown> {
        let terminal = Terminal::open(self.staged.user)?;
        let stdio = [terminal.device()?, terminal.device()?];
        let mut launch = Launch {
            argv: argv.to_vec(),
            timeout: Duration::MAX,
            has_terminal: true,
            ..self.launch(stdio).map_err(Shown::Staged)?
        };
        // The kind of terminal is that of the user's.
        let has_kind = launch.environment.iter().any(|(name, _)| name == "TERM");
        let kind = env::var("TERM").ok().filter(|_| !has_kind);
        launch
            .environment
            .extend(kind.map(|kind| ("TERM".to_owned(), kind)));
        let mut resized = signal(SignalKind::window_change())?;
        let connection = terminal.connect()?;
        let ended = {
            let mut run = std::pin::pin!(self.run(launch));
            loop {
                tokio::select! {
                    ended = &mut run => break ended,
                    _ = resized.recv() => terminal.resize(),
                }
            }
        };
        connection.end().await;
        Ok(ended?)
    }

    /// Writes the script that runs the action's command. Returns its path inside the sandbox.
    pub(super) fn write_script(&self) -> Result<String, String> {
        let Staged {
            job,
            dir,
            options,
            user,
        } = self.staged;
        let (root, tmp) = (dir.root(), dir.tmp());
        let path = tmp.join(SCRIPT);
        let [root, tmp] = if options.has_root() {
            ISOLATED.map(str::to_owned)
        } else {
            [root, tmp].map(|path| path.to_string_lossy().into_owned())
        };
        let directory = format!("{root}/{}", job.command.working_directory);
        let environment = dir.environment(job, options);
        let text = script::render("", &directory, &environment, &job.command.arguments);
        let written = script::write(&path, &text, *user);
        written.map_err(|why| format!("writing {}: {why}", path.display()))?;
        Ok(format!("{tmp}/{SCRIPT}"))
    }

    fn launch(&self, stdio: [OwnedFd; 2]) -> Result<Launch, String> {
        let Staged {
            job, dir, options, ..
        } = self.staged;
        dir.launch(job, options, stdio).map_err(|why| error(&why))
    }

    async fn run(&self, launch: Launch) -> Result<Ended, LaunchError> {
        self.launcher.run(launch, self.stop.clone()).await
    }

    /// Waits until all output is printed, unless this is to stop: its reader may never take it.
    async fn drain(&self, copies: [JoinHandle<()>; 2]) {
        for copy in copies {
            let _ = self.stop.run_until_cancelled(copy).await;
        }
    }
}

/// The error of a program in a terminal.
#[derive(Debug, thiserror::Error)]
enum Shown {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot create a terminal: {0}")]
    Terminal(#[from] io::Error),
    #[error("{0}")]
    Staged(String),
}

/// Creates pipes for standard output and error of a program, which are copied to those of this process.
fn pipes() -> Result<([OwnedFd; 2], [JoinHandle<()>; 2]), String> {
    let pipe = |to| -> io::Result<_> {
        let (reader, writer) = io::pipe()?;
        Ok((OwnedFd::from(writer), copy(reader, to)?))
    };
    let pipes = || -> io::Result<_> {
        let (out, out_copy) = pipe(stdout())?;
        let (err, err_copy) = pipe(stderr())?;
        Ok(([out, err], [out_copy, err_copy]))
    };
    pipes().map_err(|why| format!("cannot create a pipe: {why}"))
}

fn copy(mut from: PipeReader, to: impl AsFd) -> io::Result<JoinHandle<()>> {
    let mut to = File::from(to.as_fd().try_clone_to_owned()?);
    // A reader that has read enough, such as `head`, ends the program as usual: by a broken pipe.
    Ok(spawn_blocking(move || _ = io::copy(&mut from, &mut to)))
}

fn status(exit_code: i32) -> u8 {
    u8::try_from(exit_code & 0xff).unwrap_or(super::EXIT_FAILED)
}
