//! Real servers that serve as a backing cache, each a process with its own port and directory:
//! bazel-remote, buildbox-casd and gorego.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use reapi::v2::{GetCapabilitiesRequest, capabilities_client::CapabilitiesClient};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime;
use tonic::{Status, transport::Endpoint};

use crate::{
    install,
    port::Reservation,
    process::{self, Process, describe},
    root, server,
};

/// The longest wait for a server to answer or end; far more than it needs, so that only a hanging
/// server fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The pause between two attempts to reach a server that does not report when it listens.
const RETRY: Duration = Duration::from_millis(5);

/// The server's program.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Kind {
    BazelRemote,
    Casd,
    Gorego(Vec<String>),
}

/// A running server. Dropping it kills the server, and prints its log if the test failed.
#[derive(Debug)]
pub struct Backing {
    kind: Kind,
    port: Reservation,
    dir: TempDir,
    process: Process,
}

impl Backing {
    /// Starts bazel-remote, and builds it first if necessary, which needs Go.
    pub fn bazel_remote() -> Self {
        Self::start(Kind::BazelRemote)
    }

    /// Starts buildbox-casd as a plain cache, in the root with the build clients.
    pub fn casd() -> Self {
        Self::start(Kind::Casd)
    }

    /// Starts gorego. Each setting is a `key=value`.
    pub fn gorego(settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        Self::start(Kind::Gorego(settings))
    }

    fn start(kind: Kind) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let port = Reservation::any();
        let mut process = kind.spawn(dir.path(), port.address());
        if let Err(reason) = wait_until_ready(&mut process, port.address()) {
            panic!("{kind:?} does not start: {reason}\n{}", log_in(dir.path()));
        }
        Self {
            kind,
            port,
            dir,
            process,
        }
    }

    /// Returns the address, which a restart keeps.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Returns the address as a gRPC target, for `backing_cache` and Bazel.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address())
    }

    /// Returns the server's data directory.
    pub fn data(&self) -> PathBuf {
        data_in(self.dir.path())
    }

    /// Returns the log since the first start.
    pub fn log(&self) -> String {
        log_in(self.dir.path())
    }

    /// Returns the id of the started process: the server, or for casd the wrapper that runs it in the
    /// root.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills the server with SIGKILL, as a crash would, and waits until its port is closed.
    pub fn kill(&mut self) {
        self.process.kill();
        wait_until_gone(self.address());
    }

    /// Sends SIGTERM and waits until the server ends; casd is killed by its wrapper. This blocks while
    /// the server waits for its connections to close: tests with open ones have to be `multi_thread`.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        let status = self.process.wait_within(PATIENCE);
        wait_until_gone(self.address());
        status
    }

    /// Stops the process (SIGSTOP) until [`Self::thaw`]: the port stays open, and calls get no answer.
    /// Not for casd, whose process is the child of a wrapper.
    pub fn freeze(&self) {
        assert_ne!(self.kind, Kind::Casd, "only the wrapper would be stopped");
        self.process.freeze();
    }

    /// Continues a frozen process.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Starts the server again on the same port and directory, after killing it (SIGKILL) if it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.process = self.kind.spawn(self.dir.path(), self.address());
        if let Err(reason) = wait_until_ready(&mut self.process, self.port.address()) {
            panic!("{:?} does not start again: {reason}", self.kind);
        }
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.process.kill();
        if thread::panicking() {
            eprintln!("--- log of {:?} on {}:", self.kind, self.address());
            eprintln!("{}--- end of log", self.log());
        }
    }
}

impl Kind {
    fn spawn(&self, dir: &Path, address: SocketAddr) -> Process {
        let data = data_in(dir);
        fs::create_dir_all(&data).unwrap_or_else(|e| panic!("making {}: {e}", data.display()));
        let mut command = self.command(dir, &data, address);
        let log = File::options()
            .append(true)
            .create(true)
            .open(log_file(dir));
        let log = log.expect("a file in a temporary directory");
        let other = log.try_clone().expect("a second handle of the log");
        command.stdin(Stdio::null()).stdout(log).stderr(other);
        Process::spawn(&mut command)
    }

    fn command(&self, dir: &Path, data: &Path, address: SocketAddr) -> Command {
        match self {
            Self::BazelRemote => {
                let mut command = process::command(install::bazel_remote());
                // HTTP cannot be switched off; a socket file needs no second port. After a crash the
                // file still exists.
                let socket = dir.join("http");
                let _ = fs::remove_file(&socket);
                let http = format!("unix://{}", socket.display());
                command
                    .current_dir(dir)
                    .arg("--dir")
                    .arg(data)
                    .args(["--max_size", "4", "--storage_mode", "zstd"])
                    .args(["--access_log_level", "none", "--http_address", &http])
                    .args(["--grpc_address", &address.to_string()]);
                for variable in install::settings_of_bazel_remote() {
                    command.env_remove(variable);
                }
                command
            }
            Self::Casd => {
                let mut command = root::command(dir, "buildbox-casd");
                command
                    .arg(format!("--bind={address}"))
                    .args(["--quota-high=4G", "--reserved=0"])
                    .arg(data);
                command
            }
            Self::Gorego(settings) => {
                let mut settings = settings.clone();
                settings.push(format!("listen_addr={address}"));
                server::command(data, &settings)
            }
        }
    }
}

fn data_in(dir: &Path) -> PathBuf {
    dir.join("data")
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("log.txt")
}

fn log_in(dir: &Path) -> String {
    let log = fs::read(log_file(dir)).unwrap_or_default();
    String::from_utf8_lossy(&log).into_owned()
}

/// Waits until the port is closed: a server inside the root ends later than its wrapper.
fn wait_until_gone(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpListener::bind(address).is_err() {
        assert!(Instant::now() < deadline, "{address} is still in use");
        thread::yield_now();
    }
}

/// Waits until the server answers a call. Returns the reason if it ended or did not answer in time.
fn wait_until_ready(process: &mut Process, address: SocketAddr) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reason = match capabilities(address) {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        // Waits for the retry and notices an end of the process at once.
        if let Some(status) = process.ended_within(RETRY) {
            return Err(format!("it ended with {}", describe(status)));
        }
        if Instant::now() > deadline {
            return Err(format!("no answer on {address} in time: {reason}"));
        }
    }
}

/// Makes a call on its own thread, since the caller's thread may belong to a runtime, which must not
/// block.
fn capabilities(address: SocketAddr) -> Result<(), String> {
    let call = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.expect("a socket address makes a URI");
        let channel = endpoint.timeout(PATIENCE).connect().await;
        let channel = channel.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut client = CapabilitiesClient::new(channel);
        client
            .get_capabilities(GetCapabilitiesRequest::default())
            .await
    };
    let block = || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime for one call").block_on(call)
    };
    let answer = thread::scope(|scope| scope.spawn(block).join());
    let answer = answer.expect("asking a server does not panic");
    answer.map(drop).map_err(|status| status.to_string())
}
