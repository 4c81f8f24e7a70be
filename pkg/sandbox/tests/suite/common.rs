//! A launcher, a runtime, and launches of shell scripts.

use std::{
    fs::{self, File, Permissions},
    future::Future,
    io::{self, PipeReader, Read as _},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use gorego_sandbox::{Ended, Exit, Launch, LaunchError, Launcher, Leftovers, Limits, LiveCommand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time};
use tokio_util::sync::CancellationToken;

/// The time after which a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A time that does not pass during a test.
pub(crate) const NEVER: Duration = Duration::from_hours(1);

/// Leaves processes behind that ignore `SIGTERM` and are not found by their process group, session or parent.
pub(crate) const LEAVE_PROCESSES: &str = "trap '' TERM HUP INT
    setsid sleep 1000 &
    (setsid sh -c 'sleep 1000 & exec sleep 1000' &)
    nohup sleep 1000 &
    sh -c 'sleep 1000 & kill -STOP $$' &
    echo ready
";

pub(crate) struct Fixture {
    pub(crate) launcher: Launcher,
    runtime: Runtime,
}

impl Fixture {
    pub(crate) fn new(launcher: Launcher) -> Self {
        let runtime = Runtime::new().unwrap();
        Self { launcher, runtime }
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let limited = async { time::timeout(PATIENCE, future).await.expect("in time") };
        self.runtime.block_on(limited)
    }

    pub(crate) fn run(&self, launch: Launch) -> Result<Ended, LaunchError> {
        self.wait(self.launcher.run(launch, CancellationToken::new()))
    }

    /// Runs a script that has to succeed and leave no process, and returns its output.
    pub(crate) fn output_of(&self, script: &str) -> String {
        let root = Root::new();
        let ended = self.run(root.script(script)).unwrap();
        assert_eq!(ended.exit, Exit::Code(0), "{}", root.errors());
        assert_eq!(ended.leftovers, Leftovers::default());
        root.output()
    }
}

/// An input root, and files for output.
pub(crate) struct Root {
    directory: TempDir,
}

impl Root {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    /// Writes an executable file, and returns its path.
    pub(crate) fn executable(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o555)).unwrap();
        path
    }

    pub(crate) fn launch(&self, argv: &[&str]) -> Launch {
        let file = |name| {
            File::create(self.directory.path().join(name))
                .unwrap()
                .into()
        };
        Launch {
            user: None,
            isolation: None,
            confined_to: None,
            live: LiveCommand::default(),
            argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
            environment: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            root: File::open(self.path("")).unwrap().into(),
            working_directory: String::new(),
            stdout: file("stdout"),
            stderr: file("stderr"),
            stdin: None,
            has_terminal: false,
            timeout: NEVER,
            kill_delay: NEVER,
            limits: Limits::default(),
            scratch: None,
        }
    }

    pub(crate) fn script(&self, script: &str) -> Launch {
        self.launch(&["sh", "-c", script])
    }

    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("stdout")).unwrap()
    }

    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap()
    }
}

/// The reading end of a pipe whose writing end the processes of a test hold.
pub(crate) struct Watch(PipeReader);

impl Watch {
    pub(crate) fn new() -> (Self, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (Self(reader), writer.into())
    }

    /// Reads up to a line `ready`, and returns what is before it.
    pub(crate) fn ready(&mut self) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"ready\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            text.extend(byte);
        }
        String::from_utf8(text).unwrap()
    }

    /// Returns whether no process holds the writing end now.
    pub(crate) fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).unwrap();
        polled[0].revents().contains(PollFlags::HUP)
    }

    /// Waits until no process holds the writing end, and returns the rest of the output.
    pub(crate) fn gone(mut self) -> String {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            self.0.read_to_string(&mut text).unwrap();
            sender.send(text).unwrap();
        });
        receiver
            .recv_timeout(PATIENCE)
            .expect("all processes are gone")
    }
}
