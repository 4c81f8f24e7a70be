//! Real servers to stand behind a proxy, each a process on a port and a directory of its own:
//! bazel-remote, buildbox-casd and gorego.

mod install;

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
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
    process::{self, Process, describe},
    root, server,
};

/// How long a server may take to answer or to end; far more than it needs, so that only a hanging
/// one fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between two tries to reach a server that does not say when it listens.
const RETRY: Duration = Duration::from_millis(5);

/// How often another port is tried, when somebody takes the free one first.
const PORTS: usize = 5;

/// The server's program.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Kind {
    BazelRemote,
    Casd,
    Gorego(Vec<String>),
}

/// A running server. It is killed when this value goes; its log is shown if the test failed.
#[derive(Debug)]
pub struct Backing {
    kind: Kind,
    address: SocketAddr,
    dir: TempDir,
    process: Process,
}

impl Backing {
    /// bazel-remote, which is built first if this machine has not done so. It takes Go.
    pub fn bazel_remote() -> Self {
        Self::start(Kind::BazelRemote)
    }

    /// buildbox-casd as a plain cache, in the root with the build clients.
    pub fn casd() -> Self {
        Self::start(Kind::Casd)
    }

    /// gorego. Each setting is a `key=value`.
    pub fn gorego(settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        Self::start(Kind::Gorego(settings))
    }

    fn start(kind: Kind) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut last = String::new();
        for _ in 0..PORTS {
            let address = free_address();
            let mut process = kind.spawn(dir.path(), address);
            match wait_until_ready(&mut process, address) {
                Ok(()) => {
                    return Self {
                        kind,
                        address,
                        dir,
                        process,
                    };
                }
                Err(reason) => last = reason,
            }
        }
        panic!("{kind:?} does not start: {last}\n{}", log_in(dir.path()));
    }

    /// Where it listens, also after a restart.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a target of `backing_cache`, of Bazel, and so on.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Where it keeps its blobs, in its own way.
    pub fn data(&self) -> PathBuf {
        data_in(self.dir.path())
    }

    /// What it has written to its log since the first start.
    pub fn log(&self) -> String {
        log_in(self.dir.path())
    }

    /// The process that was started: the server itself, or for casd what holds it inside the root.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it with SIGKILL, as a crash would, and waits until its port is closed.
    pub fn kill(&mut self) {
        self.process.kill();
        wait_until_gone(self.address);
    }

    /// Asks it to stop (SIGTERM) and waits until it has; casd is killed all the same, by what holds
    /// it. This blocks, so a runtime with one thread cannot close its connections meanwhile, which
    /// the server waits for: such a test has to be `multi_thread`.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        let status = self.process.wait_within(PATIENCE);
        wait_until_gone(self.address);
        status
    }

    /// Stops it without ending it (SIGSTOP), until [`Self::thaw`]: its port is open, and nobody
    /// answers. Not for casd, whose process is another's child.
    pub fn freeze(&self) {
        assert_ne!(self.kind, Kind::Casd, "only what holds it would be stopped");
        self.process.freeze();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Starts it again on the same port and directory, after killing it (SIGKILL) unless it has
    /// ended.
    pub fn restart(&mut self) {
        self.kill();
        self.process = self.kind.spawn(self.dir.path(), self.address);
        if let Err(reason) = wait_until_ready(&mut self.process, self.address) {
            panic!("{:?} does not start again: {reason}", self.kind);
        }
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.process.kill();
        if thread::panicking() {
            eprintln!("--- log of {:?} on {}:", self.kind, self.address);
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
                // It insists on HTTP; in a socket file, that takes no second port. After a crash the
                // file is still there.
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

/// A port that nobody had a moment ago. Somebody may have it before the server does; then the
/// server ends, and another one is tried.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound port")
}

/// Waits until nobody listens there: what was started inside the root ends a little later than what
/// holds it.
fn wait_until_gone(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpListener::bind(address).is_err() {
        assert!(Instant::now() < deadline, "{address} is still in use");
        thread::yield_now();
    }
}

/// Waits until the server answers a call, or says why it never will.
fn wait_until_ready(process: &mut Process, address: SocketAddr) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reason = match capabilities(address) {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        // Its end is noticed at once; there is nothing else to wait for.
        if let Some(status) = process.ended_within(RETRY) {
            return Err(format!("it ended with {}", describe(status)));
        }
        if Instant::now() > deadline {
            return Err(format!("no answer on {address} in time: {reason}"));
        }
    }
}

/// One call, on a thread of its own: the caller may be part of a runtime, in which nothing may
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
