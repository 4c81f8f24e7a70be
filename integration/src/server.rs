//! A server under test, in a process of its own.

mod log;
mod surroundings;
mod user;

use std::{
    env,
    ffi::OsStr,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use reapi::v2::Digest;
use rustix::process::Signal;
use tempfile::TempDir;

use self::{
    log::{Log, follow, text},
    surroundings::{Surroundings, command_on},
};
pub use self::{
    surroundings::{Descriptors, Disk},
    user::User,
};
use crate::{
    binary,
    process::{self, Process},
};

/// The longest wait for a server to open its port or end; far more than it needs, so that only a hanging
/// server fails.
const PATIENCE: Duration = Duration::from_mins(1);
/// The interval between two checks of the log.
const POLL: Duration = Duration::from_millis(5);

/// The setting that switches metrics off.
const METRICS_ADDR: &str = "telemetry.metrics_addr=";

/// Returns the command of a server with the data directory `data`, on a free loopback port, without
/// metrics. Each setting is a `key=value`, and may override those three.
pub fn command<S: AsRef<OsStr>>(data: &Path, settings: &[S]) -> Command {
    configure(process::command(binary::gorego()), data, settings)
}

/// Removes the caller's `GOREGO_` variables from the environment of `command`.
pub fn forget_settings(command: &mut Command) {
    for (key, _) in env::vars_os() {
        if key.as_encoded_bytes().starts_with(b"GOREGO_") {
            command.env_remove(key);
        }
    }
}

fn configure<S: AsRef<OsStr>>(mut command: Command, data: &Path, settings: &[S]) -> Command {
    // The caller's settings and configuration files are not part of the test.
    forget_settings(&mut command);
    command.current_dir("/").stdin(Stdio::null());
    let mut dir = OsStr::new("local_cache.dir=").to_owned();
    dir.push(data);
    command
        .args(["--set", "listen_addr=127.0.0.1:0"])
        // By default metrics would be served on all interfaces, on a fixed port.
        .args(["--set", METRICS_ADDR, "--set"])
        .arg(dir);
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    command
}

/// A running server with its own data directory. Dropping it kills the server, and prints its log if the
/// test failed.
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

impl Server {
    /// Starts a server on an empty data directory and waits until it listens. Each setting is a
    /// `key=value`.
    pub fn start(settings: &[&str]) -> Self {
        Self::within(Surroundings::default(), settings)
    }

    /// Starts a server with the backing cache at `target`.
    pub fn in_front_of(target: &str, settings: &[&str]) -> Self {
        let target = format!("backing_cache.target={target}");
        let mut all = vec![target.as_str()];
        all.extend(settings);
        Self::start(&all)
    }

    /// Starts a server with its own file system.
    pub fn start_on(disk: Disk, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            disk: Some(disk),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server for which the certificates in `roots` are the system's authorities.
    pub fn start_with_roots(roots: &Path, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            roots: Some(roots.to_owned()),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server with this `RUST_LOG`.
    pub fn start_logging(log: &'static str, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            log: Some(log),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server with these limits of file descriptors.
    pub fn start_limited(descriptors: Descriptors, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            descriptors: Some(descriptors),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server whose actions use the programs of the root directory of the build clients.
    pub fn start_in_root(settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            in_root: true,
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server that reads this file in place of another one, such as `/etc/hosts`.
    pub fn start_reading(file: &Path, over: &'static str, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            mounted: Some((file.to_owned(), over)),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    /// Starts a server as `user`, with a configuration file if one is given.
    pub fn start_as(user: User, file: Option<&Path>, settings: &[&str]) -> Self {
        let surroundings = Surroundings {
            user,
            file: file.map(Path::to_owned),
            ..Surroundings::default()
        };
        Self::within(surroundings, settings)
    }

    fn within(surroundings: Surroundings, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        // The users of actions need access.
        let mut dir = tempfile::Builder::new();
        dir.permissions(fs::Permissions::from_mode(0o711));
        let dir = dir.tempdir().expect("a temporary directory");
        Self::launch(Arc::new(dir), surroundings, settings)
    }

    /// Starts the server again on the same directory with the same settings, after killing it (SIGKILL)
    /// if it runs.
    #[must_use]
    pub fn restart(mut self) -> Self {
        self.kill();
        let (dir, surroundings) = (Arc::clone(&self.dir), self.surroundings.clone());
        Self::launch(dir, surroundings, self.settings.clone())
    }

    /// Restarts the server on the same directory with other settings.
    #[must_use]
    pub fn restart_with(mut self, settings: &[&str]) -> Self {
        self.settings = settings.iter().map(|&s| s.to_owned()).collect();
        self.restart()
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until the log contains `part`, and returns the log.
    pub fn wait_for_log(&self, part: &str) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.contains(part) {
                return log;
            }
            assert!(start.elapsed() < PATIENCE, "no {part:?} in the log:\n{log}");
            thread::sleep(POLL);
        }
    }

    fn launch(dir: Arc<TempDir>, surroundings: Surroundings, settings: Vec<String>) -> Self {
        let data = data_in(&dir);
        let mut command = match surroundings.disk {
            None => configure(surroundings.program(dir.path(), &data), &data, &settings),
            Some(disk) => {
                fs::create_dir_all(&data).expect("a place for the disk");
                command_on(disk, &data, &settings)
            }
        };
        if let Some(file) = &surroundings.file {
            command.arg("--config").arg(file);
        }
        if let Some(roots) = &surroundings.roots {
            command.env("SSL_CERT_FILE", roots);
        }
        if let Some(log) = surroundings.log {
            command.env("RUST_LOG", log);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let stderr = process.child_mut().stderr.take();
        let log = Log::default();
        let addresses = follow(stderr.expect("stderr is piped"), Arc::clone(&log));
        let mut next = |addresses: &mpsc::Receiver<SocketAddr>, what| {
            addresses.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                process.kill();
                panic!("the server did not log {what}:\n{}", text(&log))
            })
        };
        let address = next(&addresses.listening, "its address");
        let metrics = wants_metrics(&settings)
            .then(|| next(&addresses.metrics, "the address of its metrics"));
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

    /// Returns the address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the metrics, which the settings have to enable.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics.expect("telemetry.metrics_addr is set")
    }

    /// Returns the settings.
    pub fn settings(&self) -> &[String] {
        &self.settings
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the greatest resident memory of the server so far, in bytes. It may decline by a few pages, since Linux
    /// keeps an approximate maximum.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("the server runs");
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("a size in KiB") * 1024
    }

    /// Returns the path of the data directory for this process.
    pub fn data(&self) -> PathBuf {
        let data = data_in(&self.dir);
        if self.surroundings.disk.is_none() {
            return data;
        }
        let root = format!("/proc/{}/root", self.process.id());
        Path::new(&root).join(data.strip_prefix("/").unwrap_or(&data))
    }

    /// Returns the address in the form for Bazel.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Returns the address in the form for the BuildBox tools.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Kills the server with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM without waiting for the end.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops the server (SIGSTOP) and waits until all its threads have stopped.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// Continues a frozen server.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Waits up to `limit` for the server to end by itself. Returns whether it did.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        self.process.ended_within(limit).is_some()
    }

    /// Waits until the server ends by itself.
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

/// Runs a server that must refuse to start. Returns its status and its output on stderr.
pub fn refusal<S: AsRef<OsStr>>(data: &Path, settings: &[S]) -> (ExitStatus, String) {
    refusal_of(&mut command(data, settings))
}

/// Runs a server of `user` that must refuse to start. Returns its status and its output on stderr.
pub fn refusal_as<S: AsRef<OsStr>>(user: User, settings: &[S]) -> (ExitStatus, String) {
    let dir = TempDir::new().expect("a temporary directory");
    let data = data_in(&dir);
    let program = user.program(dir.path(), &data);
    refusal_of(&mut configure(program, &data, settings))
}

/// Runs a server that must refuse to start on its own file system. Returns its status and its output.
pub fn refusal_on<S: AsRef<OsStr>>(disk: Disk, settings: &[S]) -> (ExitStatus, String) {
    let dir = TempDir::new().expect("a temporary directory");
    refusal_of(&mut command_on(disk, dir.path(), settings))
}

/// Runs a command that must refuse to start a server. Returns its status and its output.
pub fn refusal_of(command: &mut Command) -> (ExitStatus, String) {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(command);
    let stderr = process.child_mut().stderr.take();
    let log = Log::default();
    let addresses = follow(stderr.expect("stderr is piped"), Arc::clone(&log));
    // Returns an address if the server starts, or an error when its stderr is closed.
    if let Ok(address) = addresses.listening.recv_timeout(PATIENCE) {
        panic!("the server started, on {address}:\n{}", text(&log));
    }
    let status = process.wait_within(PATIENCE);
    (status, text(&log))
}

fn data_in(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// Whether the last setting of the metrics address is not empty.
fn wants_metrics(settings: &[String]) -> bool {
    let mut values = settings.iter().filter_map(|s| s.strip_prefix(METRICS_ADDR));
    values
        .next_back()
        .is_some_and(|address| !address.is_empty())
}

/// Returns the path of a blob's file in the data directory `data`, as the README documents it.
pub fn file_of(data: &Path, digest: &Digest) -> PathBuf {
    let hash = &digest.hash;
    let (first, second) = (&hash[..2], &hash[2..4]);
    data.join("cas").join(first).join(second).join(hash)
}
