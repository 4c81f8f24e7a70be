//! A server under test, in a process of its own.

mod log;

use std::{
    env,
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use self::log::{Log, follow, text};
use crate::{
    binary,
    process::{self, Process},
};

/// How long a server may take to open its port or to end; far more than it needs, so that only a
/// hanging one fails.
const PATIENCE: Duration = Duration::from_mins(1);
/// The interval between two looks at the log.
const LOOK: Duration = Duration::from_millis(5);

/// Without a value, no metrics.
const METRICS_ADDR: &str = "telemetry.metrics_addr=";

/// A command line of the server that keeps its blobs in `data`, listens on a free loopback port and
/// tells no metrics. Each setting is a `key=value`, and may override those three.
pub fn command<S: AsRef<OsStr>>(data: &Path, settings: &[S]) -> Command {
    configure(process::command(binary::gorego()), data, settings)
}

/// A file system of the server's own, which goes when the server ends.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Its size in MiB.
    pub mib: u32,
    /// What a shell does there before the server starts.
    pub prepare: &'static str,
}

/// The same, with such a file system at `data`.
fn command_on<S: AsRef<OsStr>>(disk: Disk, data: &Path, settings: &[S]) -> Command {
    let mut command = process::command("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let Disk { mib, prepare } = disk;
    let script = format!(
        "mount -t tmpfs -o size={mib}m none \"$0\" && (cd \"$0\" && {prepare}) && exec \"$@\""
    );
    command.args(["--mount", "sh", "-c", &script]).arg(data);
    command.arg(binary::gorego());
    configure(command, data, settings)
}

/// Keeps the caller's own settings from a server that `command` starts.
pub fn forget_settings(command: &mut Command) {
    for (key, _) in env::vars_os() {
        if key.as_encoded_bytes().starts_with(b"GOREGO_") {
            command.env_remove(key);
        }
    }
}

fn configure<S: AsRef<OsStr>>(mut command: Command, data: &Path, settings: &[S]) -> Command {
    // The caller's own settings and configuration files are not part of the test.
    forget_settings(&mut command);
    command.current_dir("/").stdin(Stdio::null());
    let mut dir = OsStr::new("local_cache.dir=").to_owned();
    dir.push(data);
    command
        .args(["--set", "listen_addr=127.0.0.1:0"])
        // By default they would be told on all interfaces, on a port that others may want.
        .args(["--set", METRICS_ADDR, "--set"])
        .arg(dir);
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    command
}

/// A running server on a data directory of its own. It is killed when this value goes; its log is
/// shown if the test failed.
#[derive(Debug)]
pub struct Server {
    process: Process,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    dir: Arc<TempDir>,
    surroundings: Surroundings,
    settings: Vec<String>,
    log: Log,
}

/// What it finds on its machine.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    disk: Option<Disk>,
    roots: Option<PathBuf>,
    descriptors: Option<Descriptors>,
}

impl Surroundings {
    /// The command line that its settings are added to.
    fn program(&self) -> Command {
        let Some(Descriptors { soft, hard }) = self.descriptors else {
            return process::command(binary::gorego());
        };
        let mut command = process::command("prlimit");
        command.arg(format!("--nofile={soft}:{hard}"));
        command.arg(binary::gorego());
        command
    }
}

/// The limits of files and sockets that a server may have open.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// The limit that it starts with.
    pub soft: u32,
    /// The hard limit, to which the server may raise the other.
    pub hard: u32,
}

impl Server {
    /// Starts a server on an empty data directory and waits until it listens. Each setting is a
    /// `key=value`.
    pub fn start(settings: &[&str]) -> Self {
        Self::within(Surroundings::default(), settings)
    }

    /// The same in front of the cache at `target`.
    pub fn in_front_of(target: &str, settings: &[&str]) -> Self {
        let target = format!("backing_cache.target={target}");
        let mut all = vec![target.as_str()];
        all.extend(settings);
        Self::start(&all)
    }

    /// The same on a disk of its own.
    pub fn start_on(disk: Disk, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            disk: Some(disk),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// The same where the certificates in `roots` are the system's.
    pub fn start_with_roots(roots: &Path, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            roots: Some(roots.to_owned()),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server with a limit of open files.
    pub fn start_limited(descriptors: Descriptors, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            descriptors: Some(descriptors),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    fn within(surroundings: Surroundings, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        let dir = TempDir::new().expect("a temporary directory");
        Self::launch(Arc::new(dir), surroundings, settings)
    }

    /// Starts it again on the same directory, with the same settings, after killing it (SIGKILL)
    /// unless it has ended by itself.
    #[must_use]
    pub fn restart(mut self) -> Self {
        self.kill();
        let (dir, surroundings) = (Arc::clone(&self.dir), self.surroundings.clone());
        Self::launch(dir, surroundings, self.settings.clone())
    }

    /// The same with other settings.
    #[must_use]
    pub fn restart_with(mut self, settings: &[&str]) -> Self {
        self.settings = settings.iter().map(|&s| s.to_owned()).collect();
        self.restart()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until the log contains `part`, and returns the log. The server is ahead of what the
    /// test has read of its log.
    pub fn wait_for_log(&self, part: &str) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.contains(part) {
                return log;
            }
            assert!(start.elapsed() < PATIENCE, "no {part:?} in the log:\n{log}");
            thread::sleep(LOOK);
        }
    }

    fn launch(dir: Arc<TempDir>, surroundings: Surroundings, settings: Vec<String>) -> Self {
        let data = data_in(&dir);
        let mut command = match surroundings.disk {
            None => configure(surroundings.program(), &data, &settings),
            Some(disk) => {
                fs::create_dir_all(&data).expect("a place for the disk");
                command_on(disk, &data, &settings)
            }
        };
        if let Some(roots) = &surroundings.roots {
            command.env("SSL_CERT_FILE", roots);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let stderr = process.child_mut().stderr.take();
        let log = Log::default();
        let told = follow(stderr.expect("stderr is piped"), Arc::clone(&log));
        let mut next = |told: &mpsc::Receiver<SocketAddr>, what| {
            told.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                process.kill();
                panic!("the server never said where {what}:\n{}", text(&log))
            })
        };
        let address = next(&told.listening, "it listens");
        let metrics = wants_metrics(&settings).then(|| next(&told.metrics, "its metrics are"));
        Self {
            process,
            address,
            metrics,
            dir,
            surroundings,
            settings,
            log,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it tells metrics, which its settings have to ask for.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics.expect("telemetry.metrics_addr is set")
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its data directory, as this process reaches it.
    pub fn data(&self) -> PathBuf {
        let data = data_in(&self.dir);
        if self.surroundings.disk.is_none() {
            return data;
        }
        let root = format!("/proc/{}/root", self.process.id());
        Path::new(&root).join(data.strip_prefix("/").unwrap_or(&data))
    }

    /// Its address in the form that Bazel takes.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Its address in the form that the BuildBox tools take.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop (SIGTERM), without waiting.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it has stopped by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait_within(PATIENCE)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill();
        if thread::panicking() {
            eprintln!("--- log of the server on {}:", self.address);
            eprintln!("{}--- end of log", text(&self.log));
        }
    }
}

/// Runs a server that is expected to refuse to start; its status and what it wrote to stderr.
pub fn refusal<S: AsRef<OsStr>>(data: &Path, settings: &[S]) -> (ExitStatus, String) {
    refusal_of(&mut command(data, settings))
}

/// Returns how a server that refuses to start on this disk ends, and its output.
pub fn refusal_on<S: AsRef<OsStr>>(disk: Disk, settings: &[S]) -> (ExitStatus, String) {
    let dir = TempDir::new().expect("a temporary directory");
    refusal_of(&mut command_on(disk, dir.path(), settings))
}

/// The same for a command line of the caller's own.
pub fn refusal_of(command: &mut Command) -> (ExitStatus, String) {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(command);
    let stderr = process.child_mut().stderr.take();
    let log = Log::default();
    let told = follow(stderr.expect("stderr is piped"), Arc::clone(&log));
    // Ends with the pipe: either it says that it listens after all, or it has nothing more to say.
    if let Ok(address) = told.listening.recv_timeout(PATIENCE) {
        panic!("the server started, on {address}:\n{}", text(&log));
    }
    let status = process.wait_within(PATIENCE);
    (status, text(&log))
}

fn data_in(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// Whether the last setting of the address names one.
fn wants_metrics(settings: &[String]) -> bool {
    let mut values = settings.iter().filter_map(|s| s.strip_prefix(METRICS_ADDR));
    values
        .next_back()
        .is_some_and(|address| !address.is_empty())
}
